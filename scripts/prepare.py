"""Prepares a data set for training; the same as `agenet prepare`."""

from agenet.cli import main

if __name__ == "__main__":
    main("prepare")
