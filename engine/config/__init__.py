"""Settings of one engine run, and how exact each is; must not know models or devices."""
