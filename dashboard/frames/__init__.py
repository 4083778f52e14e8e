"""From the store's snapshots to data frames, one a chart or table; no Streamlit, no Plotly."""
