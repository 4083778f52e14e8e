"""Keys and values: plain, quantized, merged or on the host; must not know experts."""
