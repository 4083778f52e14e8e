"""Child processes that die with their parent; must not know what they compute."""
