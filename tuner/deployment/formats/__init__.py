"""A deployment in the words of other programs: one file a format, FORMATS names them all.

In: a deployment and the facts of its model. Out: text. Nothing here measures, asks or runs.
"""
