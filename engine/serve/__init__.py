"""An OpenAI-compatible server on one configured engine; nothing imports it, tuner starts it."""
