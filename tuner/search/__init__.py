"""Which point of a finite space to run next; must not run or store trials."""
