"""The dashboard: Streamlit pages over the tuner's store, read-only."""
