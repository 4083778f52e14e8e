"""Other engines behind the worker protocol, on the same checkpoint, prompts and memory."""
