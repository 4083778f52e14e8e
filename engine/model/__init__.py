"""Loads any registered MoE model without its experts; must not know where experts lie."""
