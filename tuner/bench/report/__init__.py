"""Renders a bench as HTML or Markdown; must not measure."""
