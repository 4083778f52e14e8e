"""Turns store values into data frames; pure functions that must not draw."""
