"""Runs a workload and reports what it took, with intervals; must not know studies."""
