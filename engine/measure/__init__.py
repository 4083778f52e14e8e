"""Running a workload and saying what it took, with intervals."""
