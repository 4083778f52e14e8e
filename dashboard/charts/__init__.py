"""Frames to figures; pure functions that must not read the store."""
