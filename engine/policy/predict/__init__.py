"""Which experts later layers will want."""
