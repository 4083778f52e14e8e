"""Settings of one engine run, their checks, and how exact each is; must not know models or devices."""
