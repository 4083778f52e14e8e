"""Quality of a configuration: lm-eval and divergence, on the engine itself."""
