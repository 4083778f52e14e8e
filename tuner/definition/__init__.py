"""What a study was asked: definition files, objectives, workloads, policies; must not know how it searches."""
