"""Runs one engine process and restarts it when it dies; must not know what a study is."""
