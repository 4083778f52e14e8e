"""One page a question; Streamlit runs each file as a program."""
