"""Prepares a data set for training, as `agenet prepare` does; see --help."""

import runpy

if __name__ == "__main__":
    runpy.run_module("agenet.data.prepare", run_name="__main__", alter_sys=True)
