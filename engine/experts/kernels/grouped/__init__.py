"""The chosen experts of a layer in few Triton launches, wherever their records lie in the arena."""
