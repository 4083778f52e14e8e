"""Tests of the dashboard's charts."""
