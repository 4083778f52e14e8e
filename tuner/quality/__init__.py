"""Evaluates the loss against 16 bits, once per quality key; must not measure speed."""
