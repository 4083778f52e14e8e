"""The OpenAI-compatible HTTP surface: requests, routes, responses, errors; must not know the engine's insides."""
