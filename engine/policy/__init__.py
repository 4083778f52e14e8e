"""Pure decisions: what to fetch, keep, evict and compute where; no torch, no clock, no bytes."""
