"""Facts of a machine and a model before a run; values only, opens no model."""
