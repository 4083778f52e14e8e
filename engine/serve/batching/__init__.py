"""Runs requests as sequences of a batch, with caches; must not know HTTP."""
