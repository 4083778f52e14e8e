"""Quality of a configuration: lm-eval and divergence on the engine; must not measure speed."""
