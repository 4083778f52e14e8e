"""The `tune` command: each module parses, makes one library call and prints."""
