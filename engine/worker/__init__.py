"""The process that the tuner talks to: one model, one request at a time."""
