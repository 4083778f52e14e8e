"""Prepares, searches and confirms one study; the only place that knows all of its stages."""
