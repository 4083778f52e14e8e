"""Loss of a configuration against 16 bits, evaluated once for each quality key."""
