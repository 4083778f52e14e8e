"""Which resident expert leaves when room is needed."""
