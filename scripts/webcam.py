"""Predicts age and gender live, from a camera, video or stream; the same as `agenet webcam`."""

from agenet.cli import main

if __name__ == "__main__":
    main("webcam")
