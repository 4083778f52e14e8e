"""Which expert gets how many bits under an average; pure arithmetic over measured sensitivities."""
