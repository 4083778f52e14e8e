"""Predicts configs by replaying a routing trace; must not run an engine."""
