"""One module a page: reads, builds frames, draws; must not compute."""
