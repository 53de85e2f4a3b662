"""Imports what a run needs: the server that runs are forked from loads this module once.

TensorFlow is left out: only some runs need it, for TensorBoard's files.
"""

import contextlib
import gc
import importlib

for _name in (
    "agenet.runs.launch",
    "tensorflow_datasets.proto",
    "array_record.python.array_record_data_source",
    "matplotlib.backends.backend_agg",
):
    with contextlib.suppress(Exception):  # A run that needs it reports that it is missing.
        importlib.import_module(_name)
# Otherwise the garbage collector of every run would search all that was imported, again and again.
gc.collect()
gc.freeze()
