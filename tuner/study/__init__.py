"""Prepares, searches and confirms one study; the only place that knows its whole course."""
