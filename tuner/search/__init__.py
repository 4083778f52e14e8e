"""Our own search: which point of a finite space to run next, given predictions and measurements."""
