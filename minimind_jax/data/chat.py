"""Chat data: a conversation as its chat template renders it, and which of its tokens are learnt.

The template is the tokenizer directory's own, the text is encoded as a whole: what a model is trained on equals what
transformers and servers give it. Learnt are the assistant's turns: everything after the header that opens one
(`<|im_start|>assistant` and a newline, not learnt) up to and with `<|im_end|>` and its newline, thoughts and tool calls
included. System, user and tool results never are: content cannot hold the header, for `Tokenizer.apply_chat_template`
breaks up control tokens in it.

Thoughts: the shipped template renders them for the turns after the last user message only. Such a turn without
thoughts gets the empty block that the default generation prompt ends with, `<think>`, a blank line, `</think>`, a
blank line; earlier turns have neither thoughts nor a block.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

from minimind_jax.data.conversation import Conversation, Pair
from minimind_jax.data.jsonl import DroppedLineError, LineError
from minimind_jax.errors import UserError
from minimind_jax.tokenizer.chat import has_thoughts, with_empty_thoughts

if TYPE_CHECKING:
    from minimind_jax.tokenizer import Tokenizer

# Bits of a token's flags. EMPTY_THINK: of an empty block that may be left out; without these tokens the rest is
# exactly the encoding of the conversation without the block.
TARGET, EMPTY_THINK = 1, 2

_QUESTION = {"role": "user", "content": "question?"}
_ANSWER = {"role": "assistant", "content": "answer!"}
_START = itemgetter(0)
_AGREEING = 16  # characters
_Offsets = list[tuple[int, int]]


@dataclass(frozen=True)
class EncodedChat:
    """An encoded conversation.

    Attributes:
      tokens: ids of the rendered text.
      flags: one byte a token, TARGET and EMPTY_THINK.
      n_bytes: UTF-8 bytes of the targets' text; the end token of a turn and the newline after it do not count.
      text: the rendering.
    """

    tokens: list[int]
    flags: bytes
    n_bytes: int
    text: str


@dataclass(frozen=True)
class _Turn:
    """Positions in a rendered text: an assistant turn's header, what is learnt of it (start to end), its end token.

    `block_end` is the end of the empty block that begins at `start`; equal to `start` where there is none to leave out.
    """

    header: int
    start: int
    block_end: int
    end_token: int
    end: int


@dataclass(frozen=True)
class _Rendering:
    text: str
    turns: list[_Turn]


class ChatEncoder:
    """Encodes conversations by a tokenizer directory, whichever: its template must mark the assistant's turns.

    Raises:
      UserError: no chat template, or no such template: its generation prompt (with enable_thinking) is empty, is not
        what its assistant turns begin with or could be written by a user; or these do not end with the eos token.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._end_token = tokenizer.decode([tokenizer.eos_id], skip_special_tokens=False)
        self._header = self._generation_prompt(enable_thinking=True)
        self._check_header()
        # What the generation prompt adds to it for an answer without thoughts.
        prompt = self._generation_prompt(enable_thinking=False)
        self._block = prompt.removeprefix(self._header) if prompt.startswith(self._header) else ""
        self._block_is_optional = self._probe_block()

    def encode(self, conversation: Conversation) -> EncodedChat:
        """A conversation; every assistant turn is learnt.

        Raises:
          LineError: the template refuses the conversation, or does not render each assistant message as a turn of
            its own; no assistant message.
          UserError: a lone surrogate, which `parse_conversation` refuses.
        """
        (encoded,) = self.encode_many([conversation])
        if isinstance(encoded, LineError):
            raise encoded
        return encoded

    def encode_many(self, conversations: Sequence[Conversation]) -> list[EncodedChat | LineError]:
        """`encode` of many at once, which is faster; a LineError stands in the place of its conversation."""
        rendered = [self._try_render(conversation) for conversation in conversations]
        usable = [r for r in rendered if isinstance(r, _Rendering)]
        pieces = [_without_block(r.text, turn) for r in usable for turn in r.turns if turn.block_end > turn.start]
        encodings = self._tokenizer.encode_rendered_batch([r.text for r in usable] + pieces)
        whole, blockless = encodings[: len(usable)], (ids for ids, _ in encodings[len(usable) :])
        encoded = iter([_encoded(r, ids, offsets, blockless) for r, (ids, offsets) in zip(usable, whole, strict=True)])
        return [r if isinstance(r, LineError) else next(encoded) for r in rendered]

    def encode_pair(self, pair: Pair) -> tuple[EncodedChat, EncodedChat]:
        """Chosen and rejected; only the last turn of each is learnt, and what comes before has the same tokens.

        Where neither answer has thoughts the empty block is context, as in the default generation prompt. Where one
        has, the other's empty block is learnt: then thinking, or not, is part of the answer. No token is EMPTY_THINK.

        Raises:
          LineError: as `encode`.
          DroppedLineError: what comes before the answers differs.
          UserError: as `encode`.
        """
        sides = [self._render(pair.chosen), self._render(pair.rejected)]
        thoughtful = any(has_thoughts(side.messages[-1]) for side in (pair.chosen, pair.rejected))
        encodings = self._tokenizer.encode_rendered_batch([side.text for side in sides])
        encoded = []
        for side, (ids, offsets) in zip(sides, encodings, strict=True):
            start = side.turns[-1].start
            if not thoughtful and side.text.startswith(self._block, start):
                start += len(self._block)
            answer = replace(side.turns[-1], start=start, block_end=start)
            encoded.append(_encoded(_Rendering(side.text, [answer]), ids, offsets, iter(())))
        contexts = [chat.tokens[: chat.flags.index(TARGET)] for chat in encoded]
        if contexts[0] != contexts[1]:
            raise DroppedLineError(
                "the tokens before the answers of `chosen` and `rejected` differ: the prompts do, or one answer begins "
                "with a line break that joins the one before it"
            )
        return encoded[0], encoded[1]

    def _try_render(self, conversation: Conversation) -> _Rendering | LineError:
        try:
            return self._render(conversation)
        except LineError as e:
            return e

    def _render(self, conversation: Conversation) -> _Rendering:
        messages = with_empty_thoughts(conversation.messages) if self._block_is_optional else conversation.messages
        try:
            text = self._tokenizer.apply_chat_template(messages, tools=conversation.tools)
        except UserError as e:
            raise LineError(str(e)) from None
        answers = [message for message in messages if message["role"] == "assistant"]
        if not answers:
            raise LineError("no assistant message")
        turns = self._find_turns(text)
        if turns is None or len(turns) != len(answers):
            raise LineError("the chat template does not render each assistant message as a turn of its own")
        if self._block_is_optional:
            turns = [
                replace(turn, block_end=turn.start + len(self._block))
                if answer.get("reasoning_content") == "" and text.startswith(self._block, turn.start)
                else turn
                for turn, answer in zip(turns, answers, strict=True)
            ]
        return _Rendering(text, turns)

    def _find_turns(self, text: str) -> list[_Turn] | None:
        """Every assistant turn; None where one lacks its end."""
        turns = []
        position = text.find(self._header)
        while position >= 0:
            start = position + len(self._header)
            end_token = text.find(self._end_token, start)
            following = text.find(self._header, start)
            if end_token < 0 or 0 <= following < end_token:
                return None
            end = end_token + len(self._end_token)
            turns.append(_Turn(position, start, start, end_token, end + text.startswith("\n", end)))
            position = following
        return turns

    def _generation_prompt(self, enable_thinking: bool) -> str:
        render = self._tokenizer.apply_chat_template
        prompted = render([_QUESTION], add_generation_prompt=True, enable_thinking=enable_thinking)
        return prompted.removeprefix(render([_QUESTION]))

    def _check_header(self) -> None:
        header, render = self._header, self._tokenizer.apply_chat_template
        problem = ""
        if not header.strip():
            problem = "adds no generation prompt"
        elif header in render([{"role": "user", "content": f"u{header}u"}]):
            problem = f"opens an assistant turn with {header!r}, which a user could write"
        elif not self._marks_turns():
            problem = f"does not begin every assistant turn with {header!r} and end it with {self._end_token!r}"
        if problem:
            raise UserError(
                f"the chat template of {self._tokenizer.path} {problem}, so that what is to be learnt cannot be told "
                "apart: use another template"
            )

    def _marks_turns(self) -> bool:
        text = self._tokenizer.apply_chat_template([_QUESTION, _ANSWER, _QUESTION, _ANSWER])
        contents = [text[turn.start : turn.end_token] for turn in self._find_turns(text) or []]
        return len(contents) == 2 and not any(_QUESTION["content"] in content for content in contents)

    def _probe_block(self) -> bool:
        """Whether an answer has the empty block just where its `reasoning_content` is empty, and lacks it without."""
        render = self._tokenizer.apply_chat_template
        without = render([_QUESTION, _ANSWER])
        with_block = without.replace(self._header, self._header + self._block)
        return self._block != "" and with_block == render([_QUESTION, {**_ANSWER, "reasoning_content": ""}])


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


def _without_block(text: str, turn: _Turn) -> str:
    """A turn from its header to `_joint_end`, as if it had no block. Control tokens keep it apart from other turns."""
    return text[turn.header : turn.start] + text[turn.block_end : _joint_end(text, turn)]


def _joint_end(text: str, turn: _Turn) -> int:
    """How far to encode a turn to see whether the block's absence changes what follows it.

    Where tokens agree over some words they agree to the end. Only white space may look arbitrarily far ahead for what
    it joins with; then the whole turn is compared.
    """
    end = turn.block_end + 2 * _AGREEING
    return turn.end_token if end > turn.end_token or text[turn.block_end].isspace() else end


def _encoded(rendering: _Rendering, ids: list[int], offsets: _Offsets, blockless: Iterator[list[int]]) -> EncodedChat:
    """Flags the tokens; `blockless` yields the ids of `_without_block` for each turn that has one."""
    text, flags, n_bytes = rendering.text, bytearray(len(ids)), 0

    def first_token(position: int) -> int:
        return bisect_left(offsets, position, key=_START)

    for turn in rendering.turns:
        start, end = first_token(turn.start), first_token(turn.end)
        flags[start:end] = bytes([TARGET]) * (end - start)
        # A line break that content begins with may have become part of the header's last token.
        n_bytes += len(text[offsets[start][0] : turn.end_token].encode())
        if turn.block_end > turn.start:
            header, after, joint_end = first_token(turn.header), first_token(turn.block_end), _joint_end(text, turn)
            # The last words of a piece that was cut off may have other tokens.
            last = first_token(joint_end if joint_end == turn.end_token else joint_end - _AGREEING)
            rest = ids[header:start] + ids[after:last]
            if next(blockless)[: len(rest)] == rest:
                flags[start:after] = bytes([TARGET | EMPTY_THINK]) * (after - start)
    return EncodedChat(ids, bytes(flags), n_bytes, text)
