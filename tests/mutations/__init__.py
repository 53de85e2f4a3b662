"""Mutated inputs, made again from a seed; see README.md.

ALL names the kinds; each is in KINDS of the module whose name its own begins with.
"""

ALL = (
    "images",
    "clips",
    "releases",
    "prepared",
    "weights",
    "runs",
    "runs.checkpoints",
    "kills.predict",
    "kills.export",
    "kills.prepare",
    "series.sweep",
    "series.folds",
)
