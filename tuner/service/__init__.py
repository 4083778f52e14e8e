"""The configuration service: studies started, watched and handed over through REST.

A request becomes a job in the store; one thread runs jobs one after another, each as a child
process `python -m tuner`; answers are read from the store. It knows nothing of engines.
"""
