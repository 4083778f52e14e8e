"""16-bit expert weights to packed codes and back; must not know where records lie."""
