"""Recorded routing of a workload and its fingerprint; arrays and files, no engine."""
