"""The OpenAI-compatible HTTP surface; must not know the engine's insides."""
