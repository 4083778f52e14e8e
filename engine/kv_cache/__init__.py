"""Keys and values of a batch: plain, quantized, merged, or on the host; must not know experts."""
