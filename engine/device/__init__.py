"""Devices behind one Protocol: cpu, and any accelerator type that torch knows."""
