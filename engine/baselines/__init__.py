"""Baseline engines that speak the worker's protocol, on the same checkpoint and memory."""
