"""Tests mirror the tree; fakes and tiny models stand beside them."""
