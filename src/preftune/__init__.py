"""preftune optimises generative models from preferences: language models and exact games under one set of types."""

__version__ = "0.1.0"
