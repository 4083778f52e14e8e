"""What tuner and engine exchange: messages, requests, reports; values only."""
