"""Experts as byte records: packed on disk, fetched into slots, multiplied where they lie."""
