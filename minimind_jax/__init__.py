"""Train a small bilingual chat model from scratch, in JAX."""

__version__ = "0.1.0"
