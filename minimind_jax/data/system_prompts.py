"""Random system prompts for SFT, so that a model learns to answer with and without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from minimind_jax.errors import UserError

if TYPE_CHECKING:
    from minimind_jax.tokenizer import Tokenizer

SYSTEM_PROMPTS = (
    "你是一个乐于助人的助手。",
    "你是一个知识面很广的助手，请准确地回答问题。",
    "请用简洁清楚的语言回答用户的问题。",
    "你是一个小型语言模型，知道自己的局限，不确定的事情会直接说明。",
    "请认真理解用户的意思，再给出有用的回答。",
    "You are a helpful assistant.",
    "You are a careful assistant that gives correct and complete answers.",
    "Answer the user's questions briefly and clearly.",
    "You are a small language model. Say so when you do not know something.",
    "Help the user as well as you can, in the language of the question.",
)


@dataclass(frozen=True)
class SystemPrompts:
    """Attributes:
    tokens: the rendered system turn of each prompt, (n,) int32 each, to be put before a conversation's tokens.
    header: (h,) int32, what every system turn begins with.
    """

    tokens: list[np.ndarray]
    header: np.ndarray

    @property
    def max_len(self) -> int:
        return max(map(len, self.tokens))

    @property
    def header_len(self) -> int:
        return len(self.header)

    def has_system(self, first_tokens: np.ndarray) -> bool:
        """Whether a conversation that begins with these tokens has a system turn."""
        return np.array_equal(first_tokens, self.header)


def encode_system_prompts(tokenizer: Tokenizer) -> SystemPrompts:
    """Renders SYSTEM_PROMPTS. Raises UserError for a template in which a system turn is not simply put in front."""
    conversation = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    alone = tokenizer.encode_rendered(tokenizer.apply_chat_template(conversation))
    tokens = []
    for prompt in SYSTEM_PROMPTS:
        with_system = tokenizer.apply_chat_template([{"role": "system", "content": prompt}, *conversation])
        ids = tokenizer.encode_rendered(with_system)
        if len(ids) <= len(alone) or ids[-len(alone) :] != alone:
            raise UserError(
                f"the chat template of {tokenizer.path} treats conversations without a system message in a way of "
                "its own: set sft.system_prompt_prob=0"
            )
        tokens.append(np.array(ids[: -len(alone)], np.int32))
    shortest = min(map(len, tokens))
    same = [len({int(ids[i]) for ids in tokens}) == 1 for i in range(shortest)]
    header = tokens[0][: same.index(False) if False in same else shortest]
    return SystemPrompts(tokens, header)
