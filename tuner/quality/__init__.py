"""Loss against 16 bits, evaluated once for each quality key; must not measure speed."""
