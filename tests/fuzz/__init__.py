"""Fuzzing: whatever reads what others wrote, on wrong documents made of right ones."""
