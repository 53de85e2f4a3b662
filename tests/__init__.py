"""Tests, in the folders of what they test; this is the first module that pytest imports."""

import os
import sys

# The tests start hundreds of programs. Where Python may not keep the bytecode of packages, each of
# them compiles thousands of modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
