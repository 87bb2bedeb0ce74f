"""The kinds of records that a token store can hold: how a line is read, and which documents it becomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from minimind_jax.data.chat import TARGET, ChatEncoder, EncodedChat
from minimind_jax.data.conversation import Conversation, Pair, parse_conversation, parse_pair
from minimind_jax.data.jsonl import LineError, parse_text

if TYPE_CHECKING:
    from minimind_jax.tokenizer import Tokenizer

Kind = Literal["text", "chat", "pairs"]
# Part of a store's key: whoever changes what a record becomes changes this too.
RECORD_FORMATS: dict[Kind, str] = {
    "text": "text: BOS text EOS",
    "chat": "chat: rendered conversation, flags TARGET EMPTY_THINK; 1",
    "pairs": "pairs: chosen, rejected; flag TARGET on the last answer; 1",
}


@dataclass(frozen=True)
class Document:
    """A stored sequence.

    Attributes:
      tokens: its ids.
      flags: one byte a token (`chat.TARGET`, `chat.EMPTY_THINK`); empty where every token counts.
      n_bytes: UTF-8 bytes of the text that is learnt.
      identity: what decides its side of a train/validation split.
    """

    tokens: list[int]
    flags: bytes
    n_bytes: int
    identity: bytes


class Encoder(Protocol):
    """Turns lines of one kind into documents, many at a time.

    Attributes:
      notes: what `parse` and `encode` noticed about records, and of how many: phrases that go with any number, as
        "form `conversations`". Whoever reads the file clears them.
    """

    notes: Counter[str]

    def parse(self, line: bytes) -> Any:
        """A record. Raises LineError."""
        ...

    def size(self, record: Any) -> int:
        """Characters of a record, roughly."""
        ...

    def encode(self, records: Sequence[Any]) -> list[tuple[Document, ...] | LineError]:
        """The documents of each record, or what is wrong with it."""
        ...


def make_encoder(kind: Kind, tokenizer: Tokenizer) -> Encoder:
    """The encoder of a kind. Raises UserError where the tokenizer's chat template cannot serve it."""
    makers: dict[Kind, Callable[[Tokenizer], Encoder]] = {"text": _Texts, "chat": _Conversations, "pairs": _Pairs}
    return makers[kind](tokenizer)


class _Texts:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self.notes: Counter[str] = Counter()
        self._tokenizer = tokenizer

    def parse(self, line: bytes) -> str:
        return parse_text(line)

    def size(self, record: str) -> int:
        return len(record)

    def encode(self, records: Sequence[str]) -> list[tuple[Document, ...] | LineError]:
        bos, eos = self._tokenizer.bos_id, self._tokenizer.eos_id
        raw = [text.encode() for text in records]
        encoded = self._tokenizer.encode_batch(records)
        return [(Document([bos, *ids, eos], b"", len(text), text),) for text, ids in zip(raw, encoded, strict=True)]


class _Conversations:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self.notes: Counter[str] = Counter()
        self._chat = ChatEncoder(tokenizer)

    def parse(self, line: bytes) -> Conversation:
        return parse_conversation(line)

    def size(self, record: Conversation) -> int:
        return _characters(record)

    def encode(self, records: Sequence[Conversation]) -> list[tuple[Document, ...] | LineError]:
        return [
            chat if isinstance(chat, LineError) else (_document(chat, chat.text.encode()),)
            for chat in self._chat.encode_many(list(records))
        ]


class _Pairs:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self.notes: Counter[str] = Counter()
        self._chat = ChatEncoder(tokenizer)

    def parse(self, line: bytes) -> Pair:
        return parse_pair(line)

    def size(self, record: Pair) -> int:
        return _characters(record.chosen) + _characters(record.rejected)

    def encode(self, records: Sequence[Pair]) -> list[tuple[Document, ...] | LineError]:
        return [self._encode(pair) for pair in records]

    def _encode(self, pair: Pair) -> tuple[Document, ...] | LineError:
        try:
            sides = self._chat.encode_pair(pair)
        except LineError as e:
            return e
        # All pairs of a prompt fall on one side of a split.
        prompt = sides[0].tokens[: sides[0].flags.index(TARGET)]
        identity = np.asarray(prompt, np.uint32).tobytes()
        return tuple(_document(side, identity) for side in sides)


def _document(chat: EncodedChat, identity: bytes) -> Document:
    return Document(chat.tokens, chat.flags, chat.n_bytes, identity)


def _characters(conversation: Conversation) -> int:
    return sum(len(str(value)) for message in conversation.messages for value in message.values())
