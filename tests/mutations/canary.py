"""Mutated files name this module: to import it is to run code that a file asked for."""

import os
from pathlib import Path

Path(os.environ.get("CANARY", os.devnull)).touch()
