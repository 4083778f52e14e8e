"""Streamlit pages over the store, read-only; must not start anything."""
