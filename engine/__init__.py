"""The offloading engine: runs Mixture-of-Experts models whose experts do not fit. Knows no tuning."""

__version__ = "0.1.0"
