"""The engine's policies over a recorded trace and a hardware profile; no torch."""
