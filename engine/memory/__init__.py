"""The memory equation: what a configuration needs on the device and what fits a budget; pure arithmetic."""
