"""Answers in chats: the tokenizer's template renders the prompt, as in training and in servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax.numpy as jnp
from jax.sharding import Mesh

from minimind_jax.config import ModelConfig
from minimind_jax.inference.generate import generate
from minimind_jax.inference.options import Options
from minimind_jax.model import Params
from minimind_jax.tokenizer import Tokenizer


class Chat(Protocol):
    """What is answered, such as `data.conversation.Conversation`: the arguments of `Tokenizer.apply_chat_template`."""

    @property
    def messages(self) -> Sequence[Mapping[str, Any]]: ...

    @property
    def tools(self) -> Sequence[Mapping[str, Any]] | None: ...


def chat_prompt(tokenizer: Tokenizer, chat: Chat, enable_thinking: bool = False) -> list[int]:
    """Token ids of the conversation up to where the next answer begins.

    Args:
      enable_thinking: leaves it to the model to open a think block; else the prompt ends in an empty one.

    Raises:
      UserError: the template refuses the conversation, or there is no template.
    """
    text = tokenizer.apply_chat_template(
        chat.messages, chat.tools, add_generation_prompt=True, enable_thinking=enable_thinking
    )
    return tokenizer.encode_rendered(text)


def answer(
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    chats: Sequence[Chat],
    options: Options,
    *,
    enable_thinking: bool = False,
    dtype: jnp.dtype = jnp.float32,
    mesh: Mesh | None = None,
) -> list[str]:
    """The assistant's next message in each conversation, without special tokens.

    Options, mesh and errors are those of `generate` (prompt i is conversation i) and `chat_prompt`.
    """
    prompts = [chat_prompt(tokenizer, chat, enable_thinking) for chat in chats]
    new_tokens = generate(config, params, prompts, options, eos_id=tokenizer.eos_id, dtype=dtype, mesh=mesh)
    return [tokenizer.decode(ids) for ids in new_tokens]
