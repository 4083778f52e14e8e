"""Builds figures from frames; pure functions that must not read the store."""
