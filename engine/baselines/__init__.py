"""Baseline engines behind the worker's messages, on the same checkpoint and memory."""
