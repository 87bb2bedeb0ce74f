"""Tokenizer: loading, the chat template, training. Never imports torch or transformers."""

from minimind_jax.tokenizer.load import Tokenizer, load_tokenizer
from minimind_jax.tokenizer.vocabulary import counterparts

__all__ = ["Tokenizer", "counterparts", "load_tokenizer"]
