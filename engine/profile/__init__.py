"""Measures the speeds of a machine and of a model's parts; must not know studies."""
