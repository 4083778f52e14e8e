"""Tests of the dashboard's pages, run headless by Streamlit's own harness."""
