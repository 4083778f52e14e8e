"""Requests as sequences of a running batch, and caches; must not know HTTP."""
