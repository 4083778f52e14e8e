"""The tuner: studies from a definition to an exported config. It never imports torch."""
