"""The kinds of records that a token store can hold: how a line is read, and which documents it becomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from minimind_jax.chat import (
    TARGET,
    ChatEncoder,
    Conversation,
    ConversationError,
    ConversationRecord,
    EncodedChat,
    PairRecord,
)
from minimind_jax.data.chat import as_line_error, parse_conversation, parse_pair
from minimind_jax.data.jsonl import LineError, parse_text
from minimind_jax.data.marks import Marks

if TYPE_CHECKING:
    from minimind_jax.tokenizer import Tokenizer

Kind = Literal["text", "text_encoded_marks", "text_spelt_marks", "chat", "pairs"]
# By `data.marks`: what becomes of marks between samples that a pretraining text spells out.
TEXT_KINDS: dict[str, Kind] = {"split": "text", "encode": "text_encoded_marks", "text": "text_spelt_marks"}
# Part of a store's key: whoever changes what a record becomes changes this too.
RECORD_FORMATS: dict[Kind, str] = {
    "text": "text: BOS text EOS, split at marks; 2",
    "text_encoded_marks": "text: BOS text EOS, marks as BOS and EOS; 2",
    "text_spelt_marks": "text: BOS text EOS; 2",
    "chat": "chat: each answer after the prompt of a server, flags TARGET EMPTY_THINK; 2",
    "pairs": "pairs: chosen, rejected; flag TARGET on the last answer; 2",
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
    makers: dict[Kind, Callable[[Tokenizer], Encoder]] = {
        "text": _SplitTexts,
        "text_encoded_marks": _MarkedTexts,
        "text_spelt_marks": _Texts,
        "chat": _Conversations,
        "pairs": _Pairs,
    }
    return makers[kind](tokenizer)


class _Texts:
    """Marks in them are text like any other."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.notes: Counter[str] = Counter()
        self._tokenizer = tokenizer
        self._marks = Marks(tokenizer)

    def parse(self, line: bytes) -> str:
        return parse_text(line)

    def size(self, record: str) -> int:
        return len(record)

    def encode(self, records: Sequence[str]) -> list[tuple[Document, ...] | LineError]:
        self._note(records, "text that spells out {marks}")
        return [(document,) for document in self._documents(records)]

    def _documents(self, texts: Sequence[str]) -> list[Document]:
        bos, eos = self._tokenizer.bos_id, self._tokenizer.eos_id
        encoded = self._tokenizer.encode_batch(texts)
        raw = [text.encode() for text in texts]
        return [Document([bos, *ids, eos], b"", len(text), text) for text, ids in zip(raw, encoded, strict=True)]

    def _note(self, texts: Sequence[str], phrase: str) -> None:
        self.notes.update(phrase.format(marks=found) for text in texts if (found := self._marks.found(text)))


class _SplitTexts(_Texts):
    """What stands between marks is a document."""

    def encode(self, records: Sequence[str]) -> list[tuple[Document, ...] | LineError]:
        self._note(records, "text split into documents at {marks}")
        turns = sum(self._marks.has_turns(text) for text in records)
        if turns:
            self.notes["text that looks like a conversation; data.marks=encode keeps its turns together"] += turns
        pieces = [self._marks.split(text) for text in records]
        documents = iter(self._documents(list(chain.from_iterable(pieces))))
        return [tuple(islice(documents, len(some))) or LineError("`text` holds nothing but marks") for some in pieces]


class _MarkedTexts(_Texts):
    """Marks become the tokenizer's bos and eos."""

    def encode(self, records: Sequence[str]) -> list[tuple[Document, ...] | LineError]:
        self._note(records, "text with {marks} as control tokens")
        parts = [self._marks.parts(text) for text in records]
        encoded = iter(self._tokenizer.encode_batch([part for some in parts for part in some if isinstance(part, str)]))
        bos, eos = self._tokenizer.bos_id, self._tokenizer.eos_id
        documents: list[tuple[Document, ...] | LineError] = []
        for text, some in zip(records, parts, strict=True):
            ids = [i for part in some for i in (next(encoded) if isinstance(part, str) else [part])]
            if not any(isinstance(part, str) and part.strip() for part in some):
                documents.append(LineError("`text` holds nothing but marks"))
                continue
            ids = [bos] * (ids[0] != bos) + ids + [eos] * (ids[-1] != eos)
            n_bytes = sum(len(part.encode()) for part in some if isinstance(part, str))
            documents.append((Document(ids, b"", n_bytes, text.encode()),))
        return documents


class _Conversations:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self.notes: Counter[str] = Counter()
        self._chat = ChatEncoder(tokenizer)

    def parse(self, line: bytes) -> ConversationRecord:
        return parse_conversation(line)

    def size(self, record: ConversationRecord) -> int:
        return _characters(record.conversation)

    def encode(self, records: Sequence[ConversationRecord]) -> list[tuple[Document, ...] | LineError]:
        """Documents are the sequences in which a conversation's answers are learnt; all fall on one side of a split."""
        encoded: list[tuple[Document, ...] | LineError] = []
        for record, chats in zip(records, self._chat.encode_many([r.conversation for r in records]), strict=True):
            if isinstance(chats, ConversationError):
                encoded.append(as_line_error(chats))
                continue
            encoded.append(tuple(_document(chat, chats[-1].text.encode()) for chat in chats))
            self._note(record, len(chats))
        return encoded

    def _note(self, record: ConversationRecord, n_sequences: int) -> None:
        note_record(self.notes, record)
        messages, context = record.conversation.messages, record.conversation.context
        if messages[0]["role"] == "assistant":
            self.notes["answer with nothing before it, not learnt"] += 1
        if context:
            self.notes["answer of weight 0, not learnt"] += len(context)
        if n_sequences > 1:
            note = "answer in a sequence of its own: the chat template rewrites what was before it"
            self.notes[note] += n_sequences - 1


class _Pairs:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self.notes: Counter[str] = Counter()
        self._chat = ChatEncoder(tokenizer)

    def parse(self, line: bytes) -> PairRecord:
        return parse_pair(line)

    def size(self, record: PairRecord) -> int:
        return _characters(record.chosen) + _characters(record.rejected)

    def encode(self, records: Sequence[PairRecord]) -> list[tuple[Document, ...] | LineError]:
        return [self._encode(pair) for pair in records]

    def _encode(self, pair: PairRecord) -> tuple[Document, ...] | LineError:
        try:
            sides = self._chat.encode_pair(pair.chosen, pair.rejected)
        except ConversationError as e:
            return as_line_error(e)
        note_record(self.notes, pair)
        # All pairs of a prompt fall on one side of a split.
        prompt = sides[0].tokens[: sides[0].flags.index(TARGET)]
        identity = np.asarray(prompt, np.uint32).tobytes()
        return tuple(_document(side, identity) for side in sides)


def note_record(notes: Counter[str], record: ConversationRecord | PairRecord) -> None:
    """Notes a record's form and the keys that mean nothing to us."""
    notes[f"form {record.form}"] += 1
    for key in record.unknown:
        notes[f"unknown key `{key[:40]}`"] += 1


def _document(chat: EncodedChat, identity: bytes) -> Document:
    return Document(chat.tokens, chat.flags, chat.n_bytes, identity)


def _characters(conversation: Conversation) -> int:
    return sum(len(str(value)) for message in conversation.messages for value in message.values())
