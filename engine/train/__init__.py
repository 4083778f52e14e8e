"""Trains what policies may use, from recorded traces; must not run a model."""
