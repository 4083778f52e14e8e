"""One page each: reads, frames, draws; must not compute."""
