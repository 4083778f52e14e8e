"""Packs 16-bit expert weights into codes and unpacks them; must not know where records lie."""
