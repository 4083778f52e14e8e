"""The process that the tuner talks to: one model, requests one by one, JSON lines on a socket."""
