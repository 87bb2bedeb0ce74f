"""Conversations as token sequences, and which of their tokens are learnt.

An answer is learnt after exactly the tokens that a server sends for it: the prompt is encoded as a whole, as servers
do, and the answer after it, as the model writes it. A later answer goes on in the same sequence where its prompt begins
with what the sequence has so far; where the template has rewritten it (thoughts of earlier turns are left out, say),
the answer has a sequence of its own.

Learnt is everything after the header that opens the answer (`<|im_start|>assistant` and a newline) up to and with the
end token and its newline, thoughts, empty think blocks and tool calls included; system, user and tool results never
are: content cannot hold the header, for control tokens in it are broken up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

from minimind_jax.chat.conversation import Conversation, ConversationError
from minimind_jax.chat.template import EMPTY_BLOCK, Turn, chat_template, has_thoughts

if TYPE_CHECKING:
    from minimind_jax.tokenizer import Tokenizer

# Bits of a token's flags. EMPTY_THINK: of a block without thoughts that may be left out; without these tokens the rest
# is what the conversation would be without the block.
TARGET, EMPTY_THINK = 1, 2

_START = itemgetter(0)
_MAX_CUTS = 4096  # remembered ends of pieces; there are a handful, unless a template is strange
_Offsets = list[tuple[int, int]]


@dataclass(frozen=True)
class EncodedChat:
    """An encoded sequence.

    Attributes:
      tokens: its ids.
      flags: one byte a token, TARGET and EMPTY_THINK.
      n_bytes: UTF-8 bytes of the targets' text; the end token of a turn and the newline after it do not count.
      text: the rendering.
    """

    tokens: list[int]
    flags: bytes
    n_bytes: int
    text: str


class ChatEncoder:
    """Encodes conversations by a tokenizer directory, whichever. Raises UserError as `ChatTemplate.check_turns`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.template = chat_template(tokenizer)
        self.template.check_turns()
        self._cuts: dict[str, list[int]] = {}  # what ends a prompt or an answer -> its tokens

    def encode(self, conversation: Conversation) -> list[EncodedChat]:
        """The sequences in which a conversation's answers are learnt.

        Raises:
          ConversationError: the template refuses the conversation, leaves a part of it out, or does not render each
            assistant message as a turn of its own; there is none after another message.
          UserError: a lone surrogate, which `read_messages` refuses.
        """
        (encoded,) = self.encode_many([conversation])
        if isinstance(encoded, ConversationError):
            raise encoded
        return encoded

    def encode_many(self, conversations: Sequence[Conversation]) -> list[list[EncodedChat] | ConversationError]:
        """`encode` of many at once, which is faster; an error stands in the place of its conversation."""
        rendered = [self._try_sequences(conversation) for conversation in conversations]
        usable = [turns for sequences in rendered if isinstance(sequences, list) for turns in sequences]
        encodings = iter(self._tokenizer.encode_rendered_batch([turns[-1].text for turns in usable]))
        encoded: list[list[EncodedChat] | ConversationError] = []
        for sequences in rendered:
            if isinstance(sequences, ConversationError):
                encoded.append(sequences)
            else:
                encoded.append([chat for turns in sequences for chat in self._encode(turns, *next(encodings))])
        return encoded

    def encode_pair(self, chosen: Conversation, rejected: Conversation) -> tuple[EncodedChat, EncodedChat]:
        """Two conversations of which only the last turns are learnt; what comes before has the same tokens.

        Where neither answer has thoughts an empty block of the prompt is context. Where one has, what follows the
        header is learnt on both sides: then thinking, or not, is part of the answer. No token is EMPTY_THINK.

        Raises:
          ConversationError: as `encode`; `dropped`: what comes before the answers differs.
          UserError: as `encode`.
        """
        turns = [self.template.last_turn(side) for side in (chosen, rejected)]
        thoughtful = any(has_thoughts(side.messages[-1]) for side in (chosen, rejected))
        encoded = []
        for turn in turns:
            ids, offsets = self._split(turn)
            start = _first_token(offsets, turn.header_end if thoughtful else len(turn.prompt))
            flags = bytes(start) + bytes([TARGET]) * (len(ids) - start)
            encoded.append(EncodedChat(ids, flags, _n_bytes(turn, offsets[start][0]), turn.text))
        contexts = [chat.tokens[: chat.flags.index(TARGET)] for chat in encoded]
        if contexts[0] != contexts[1]:
            message = "the tokens before the answers of `chosen` and `rejected` differ: the prompts do"
            raise ConversationError(message, "rejected", dropped=True)
        return encoded[0], encoded[1]

    def _try_sequences(self, conversation: Conversation) -> list[list[Turn]] | ConversationError:
        """Turns, those together of which each one's prompt begins with all of the one before it."""
        try:
            turns = self.template.turns(conversation)
        except ConversationError as e:
            return e
        sequences = [[turns[0]]]
        for turn in turns[1:]:
            if turn.prompt.startswith(sequences[-1][-1].text):
                sequences[-1].append(turn)
            else:
                sequences.append([turn])
        return sequences

    def _encode(self, turns: list[Turn], ids: list[int], offsets: _Offsets) -> list[EncodedChat]:
        """One sequence, given the encoding of its whole text."""
        ends = [len(turn.prompt) for turn in turns] + [len(turn.text) for turn in turns[:-1]]
        if all(self._is_cut(turns[-1].text, end, ids, offsets) for end in ends):
            return [self._flagged(turns, ids, offsets)]
        # Text on both sides of an end would share a token, or look at each other: then every turn stands alone.
        return [self._flagged([turn], *self._split(turn)) for turn in turns]

    def _split(self, turn: Turn) -> tuple[list[int], _Offsets]:
        """Prompt and answer, encoded one by one, unless the whole has the same tokens."""
        (ids, offsets), (own, own_offsets), (after, after_offsets) = self._tokenizer.encode_rendered_batch(
            [turn.text, turn.prompt, turn.answer]
        )
        if ids[: len(own)] == own:
            return ids, offsets
        shift = len(turn.prompt)
        return own + after, own_offsets + [(start + shift, end + shift) for start, end in after_offsets]

    def _is_cut(self, text: str, position: int, ids: list[int], offsets: _Offsets) -> bool:
        """Whether text[:position], encoded by itself, has the tokens that it has as a part of `text`.

        Added tokens keep what is before them apart from what follows, so it is enough to look from the last one on.
        """
        end = _first_token(offsets, position)
        start = next((i for i in range(end - 1, -1, -1) if ids[i] in self._tokenizer.added_ids), 0)
        piece = text[offsets[start][0] : position]
        if piece not in self._cuts:
            if len(self._cuts) >= _MAX_CUTS:
                self._cuts.clear()
            self._cuts[piece] = self._tokenizer.encode_rendered(piece)
        return self._cuts[piece] == ids[start:end]

    def _flagged(self, turns: list[Turn], ids: list[int], offsets: _Offsets) -> EncodedChat:
        text, flags, n_bytes = turns[-1].text, bytearray(len(ids)), 0
        for turn in turns:
            start, end = _first_token(offsets, turn.header_end), _first_token(offsets, len(turn.text))
            flags[start:end] = bytes([TARGET]) * (end - start)
            n_bytes += _n_bytes(turn, offsets[start][0])
        # Later prompts have the blocks of earlier turns: only the last one may be left out.
        block = EMPTY_BLOCK.match(text, turns[-1].header_end)
        if block and self._is_cut(text, block.end(), ids, offsets):
            after = _first_token(offsets, block.end())
            flags[start:after] = bytes([TARGET | EMPTY_THINK]) * (after - start)
        return EncodedChat(ids, bytes(flags), n_bytes, text)


def target_bytes(tokenizer: Tokenizer, ids: Sequence[int], is_target: np.ndarray) -> int:
    """`EncodedChat.n_bytes` of a conversation that was cut short; a character that was cut has none."""
    turns: list[list[int]] = [[]]
    for i in np.flatnonzero(is_target):
        if i and not is_target[i - 1]:
            turns.append([])
        turns[-1].append(ids[int(i)])
    n_bytes = 0
    for turn in turns:
        text = turn[: turn.index(tokenizer.eos_id)] if tokenizer.eos_id in turn else turn
        n_bytes += len(tokenizer.decode(text, skip_special_tokens=False).rstrip("\ufffd").encode())
    return n_bytes


def _first_token(offsets: _Offsets, position: int) -> int:
    return bisect_left(offsets, position, key=_START)


def _n_bytes(turn: Turn, start: int) -> int:
    return len(turn.text[start : turn.end_token].encode())
