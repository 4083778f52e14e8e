"""One engine process, restarted when it dies, and what is asked of it; must not know what a study is."""
