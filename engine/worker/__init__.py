"""The worker process that the tuner uses: one model, one request at a time."""
