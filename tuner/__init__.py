"""Studies: find the best configuration of the engine on this machine; must not import torch."""
