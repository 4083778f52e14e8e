"""Tests of the tuner, on an engine that computes nothing."""
