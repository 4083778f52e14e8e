"""How many of something a command may be asked for."""

MOST_COUNT = 1_000_000_000  # rounds, tokens, steps: far more than anything ends with
