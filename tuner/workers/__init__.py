"""Starts more processes that run a study's trials, here or on Ray; must not search themselves."""
