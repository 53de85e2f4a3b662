"""Trains the same network on the same data in JAX, PyTorch and Keras and compares them."""
