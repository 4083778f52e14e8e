"""Store values to frames; pure functions that must not draw."""
