"""Predicts configurations from a routing trace; must not run an engine."""
