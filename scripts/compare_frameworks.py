"""Compares JAX, PyTorch and Keras, as `agenet compare` does; see --help."""

import runpy

if __name__ == "__main__":
    runpy.run_module("agenet.frameworks.comparison.compare", run_name="__main__", alter_sys=True)
