"""The offloading engine: one model under a memory budget; it must not know of tuning."""

__version__ = "0.1.0"
