"""Predicts configurations from a routing trace without running an engine."""
