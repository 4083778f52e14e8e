"""One configured engine: prefill and decode over micro-batches; must not know studies."""
