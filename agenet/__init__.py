"""Age and gender classification from face pictures, in JAX and Flax."""

__version__ = "0.1.0"
