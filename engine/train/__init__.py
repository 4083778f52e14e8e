"""Trains predictors, gates and eviction weights from recorded traces; must not run a model."""
