"""Threats of docs/security.md that concern more than one part of the program."""
