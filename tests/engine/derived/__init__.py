"""Tests of derived files."""
