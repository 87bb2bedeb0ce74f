"""Tokenizer: loading, the chat template, training. Never imports torch or transformers."""

from minimind_jax.tokenizer.load import Tokenizer, load_tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]
