"""The memory equation: what a configuration needs and what fits; pure arithmetic."""
