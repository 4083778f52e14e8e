"""Records outside the device: disk, packs, host; must not choose what to move."""
