"""Runs a workload and reports its costs, with intervals; must not know studies."""
