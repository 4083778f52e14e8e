"""Where expert records lie outside the device: disk, packs, host memory; must not choose what to move."""
