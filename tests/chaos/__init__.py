"""Faults planted in whole studies, engines and servers: nothing is lost, and nothing is left."""
