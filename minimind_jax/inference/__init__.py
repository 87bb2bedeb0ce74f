"""Generation with a static key/value cache, compiled."""

from minimind_jax.inference.generate import generate, generate_text

__all__ = ["generate", "generate_text"]
