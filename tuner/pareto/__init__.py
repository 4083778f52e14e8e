"""What is best of what was measured, and with what probability; runs and stores nothing."""
