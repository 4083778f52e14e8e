"""Which resident expert goes; must not know where its bytes lie."""
