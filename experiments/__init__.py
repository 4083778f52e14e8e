"""Measurements for the lab book, run by experiments.run; the product imports none of them."""
