"""What a study was asked: definition, objectives, workload; must not know the search."""
