"""Predicts age and gender of the faces in image files; the same as `agenet predict`."""

from agenet.cli import main

if __name__ == "__main__":
    main("predict")
