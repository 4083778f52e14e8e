"""Byte layouts of records, matrices, KV rows and pre-quantized checkpoints; no torch."""
