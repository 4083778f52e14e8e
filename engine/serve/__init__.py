"""An OpenAI-compatible server on one configured engine: `python -m engine.serve --fd N`.

It is spoken to like a worker (engine.contract.messages): open, configure, measure, then serve. Nothing
imports it; tuner starts it.
"""
