"""Bounds on files that others wrote: bytes, nesting, aliases; must not know what they describe."""
