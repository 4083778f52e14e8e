"""What is known of a machine and a model before anything runs; values only, must not open a model."""
