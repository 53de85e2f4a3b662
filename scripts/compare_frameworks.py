"""Compares JAX, PyTorch and Keras; the same as `agenet compare`."""

from agenet.cli import main

if __name__ == "__main__":
    main("compare")
