"""What a bench says beyond its rows: derived figures, ablations, what was published; as a file."""
