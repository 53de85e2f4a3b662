"""Predicts age and gender from a camera or video, as `agenet webcam` does; see --help."""

import runpy

if __name__ == "__main__":
    runpy.run_module("agenet.faces.webcam", run_name="__main__", alter_sys=True)
