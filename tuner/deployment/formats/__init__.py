"""Renders a deployment for other programs; must not run them."""
