"""The deployment YAML and its operations: export, compare, verify, canary, serve."""
