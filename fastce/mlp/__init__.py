"""The trainer: a small NumPy network on fastce's loss, and MNIST to train it with."""

from .classifier import MLPClassifier
from .mnist import load_mnist

__all__ = ["MLPClassifier", "load_mnist"]
