"""The native library: products with packed weights and fitted scales in C++, loaded by ctypes."""
