"""Measures configurations side by side and reports on them; must not search."""
