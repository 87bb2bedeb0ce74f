"""Conversations, and what an encoder makes of them, as text."""

from __future__ import annotations

import itertools
from typing import Any

from transformers import AutoTokenizer

from minimind_jax.chat import EMPTY_THINK, TARGET, ChatEncoder, Conversation, EncodedChat
from minimind_jax.tokenizer import Tokenizer, load_tokenizer

TOKENIZER = load_tokenizer()
ENCODER = ChatEncoder(TOKENIZER)
HF = AutoTokenizer.from_pretrained(str(TOKENIZER.path))

EMPTY = "<think>\n\n</think>\n\n"
BOTH = TARGET | EMPTY_THINK
END = "<|im_end|>\n"
S = {"role": "system", "content": "Be brief."}
U = {"role": "user", "content": "你好"}
A = {"role": "assistant", "content": "Hello 😀"}
THINK = {"role": "assistant", "content": "42", "reasoning_content": "six times seven"}
TOOL = {"type": "function", "function": {"name": "f"}}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def calls(*names: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "arguments": {"城市": "北京"}}} for name in names]


def result(content: str) -> dict[str, Any]:
    return {"role": "tool", "content": content}


def encode(*messages: dict[str, Any], tools: list[dict[str, Any]] | None = None) -> EncodedChat:
    """The only sequence of a conversation."""
    (chat,) = ENCODER.encode(Conversation(messages, tools))
    return chat


def encode_pair(chosen: list[dict[str, Any]], rejected: list[dict[str, Any]]) -> tuple[EncodedChat, EncodedChat]:
    return ENCODER.encode_pair(Conversation(chosen), Conversation(rejected))


def decode(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=False)


def runs(chat: EncodedChat, tokenizer: Tokenizer = TOKENIZER) -> list[tuple[int, str]]:
    """Neighbouring tokens with the same flags, as text."""
    assert len(chat.flags) == len(chat.tokens)
    pairs = itertools.groupby(zip(chat.tokens, chat.flags, strict=True), key=lambda pair: pair[1])
    return [(flags, tokenizer.decode([token for token, _ in run], skip_special_tokens=False)) for flags, run in pairs]


def prompt(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}{END}"


HEAD = "<|im_start|>assistant\n"
ASK = prompt("user", "你好")
