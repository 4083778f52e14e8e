"""How tensors lie in bytes: expert records, non-expert matrices, KV rows, pre-quantized checkpoints; no torch."""
