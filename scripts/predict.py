"""Predicts age and gender of the faces in image files, as `agenet predict` does; see --help."""

import runpy

if __name__ == "__main__":
    runpy.run_module("agenet.inference.image_files", run_name="__main__", alter_sys=True)
