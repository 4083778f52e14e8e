"""Pure decisions: what to fetch, keep, evict, in which order, at which precision and where.

Plain Python over small values, no torch, no clock, no bytes: so the same objects run in the engine
and over a recorded trace. Every mechanism is a Protocol with a registry in engine.policy.registry.
"""
