"""Studies: which configuration of the engine is best here; it must not import torch."""
