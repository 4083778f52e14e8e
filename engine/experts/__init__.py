"""Experts as byte records, fetched into slots and multiplied there; decides nothing."""
