"""What is best of what was measured, and how sure that is; must not run or store anything."""
