"""Generation with a static key/value cache, compiled."""

from minimind_jax.inference.chat import Chat, answer, chat_prompt
from minimind_jax.inference.generate import generate, generate_text

__all__ = ["Chat", "answer", "chat_prompt", "generate", "generate_text"]
