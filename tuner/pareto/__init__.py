"""What is best of what was measured, and how probability that is; runs and stores nothing."""
