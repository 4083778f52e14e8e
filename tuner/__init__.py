"""Studies over the engine: define, propose, run, score, keep, choose, hand over. Imports no torch."""
