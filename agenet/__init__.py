"""Age and gender classification from face images, in JAX and Flax."""

from agenet.inference.predictor import Predictor

__all__ = ["Predictor"]

__version__ = "0.1.0"
