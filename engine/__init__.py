"""The offloading engine: runs MoE models whose experts do not fit. Knows nothing of tuning."""

__version__ = "0.1.0"
