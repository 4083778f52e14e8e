"""Checks that a store keeps its invariants; reads, never writes."""
