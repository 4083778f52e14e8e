"""The deployment YAML and its life: export, compare, verify, canary, serve."""
