"""The digital twin: the engine's policies over a recorded trace and a hardware profile."""
