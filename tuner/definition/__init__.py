"""The user's request: definition, objectives, workload; must not know the search."""
