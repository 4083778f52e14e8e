"""Products with packed experts; each is checked before it is used."""
