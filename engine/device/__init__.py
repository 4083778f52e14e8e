"""Devices behind one Protocol: the CPU, accelerators that torch knows, emulated machines."""
