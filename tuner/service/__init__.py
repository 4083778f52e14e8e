"""The REST service: studies become jobs, answers come from the store; no engine here."""
