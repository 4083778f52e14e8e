"""The OpenAI-compatible HTTP API; must not know the engine's insides."""
