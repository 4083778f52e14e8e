"""Which expert gets how many bits under an average; arithmetic over sensitivities."""
