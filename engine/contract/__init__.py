"""Messages, requests and reports between tuner and engine; values only."""
