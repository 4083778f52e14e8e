"""Turns 16-bit expert weights into packed codes and back; must not know where records are kept."""
