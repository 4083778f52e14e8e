"""How records, matrices, KV rows and pre-quantized checkpoints lie in bytes; no torch."""
