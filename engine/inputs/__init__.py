"""Bounds on what others send: files, YAML, JSON, connections; must not know what it describes."""
