"""A deployment in the words of other programs; must not run them."""
