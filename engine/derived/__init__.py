"""Files that can be made again: checksummed, dropped if damaged; must not know their content."""
