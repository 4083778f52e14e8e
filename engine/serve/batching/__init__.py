"""Requests become sequences of a running batch: scheduling, prefill, caches, metrics; must not know HTTP."""
