"""What is best of what was measured, and how sure that is; runs and stores nothing."""
