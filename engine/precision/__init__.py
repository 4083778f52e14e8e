"""Allocates bits to experts under an average; arithmetic over sensitivities."""
