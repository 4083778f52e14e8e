"""One engine process, restarted when it dies; must not know what a study is."""
