"""The REST service: turns studies into jobs, answers from the store; runs no engine."""
