"""Chooses which resident expert to evict; must not know where its bytes lie."""
