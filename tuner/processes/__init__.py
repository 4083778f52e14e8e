"""Children that die with their parent, and how a process is named; must not know what they compute."""
