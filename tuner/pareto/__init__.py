"""Ranks measured trials and computes their probability on the front; runs and stores nothing."""
