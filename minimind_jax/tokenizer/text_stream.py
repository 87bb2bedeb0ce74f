"""From token ids that arrive one by one to text that is safe to show: whole characters, nothing of a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from minimind_jax.tokenizer import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_CONTEXT = 4  # tokens decoded again before the new ones: some decoders treat the first token of a text differently


class TextStream:
    """The text of one sequence, piece by piece.

    A Chinese character or an emoji may be split over several tokens: its bytes are held back until it is whole. So is
    text that may yet turn out to be the beginning of a stop text. The pieces together are the decoded text up to the
    first stop text.

    Attributes:
      stopped: a stop text has appeared; nothing comes after it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []  # the last tokens, from a few that are shown already on
        self._shown = 0  # characters of their text that are shown
        self._held = ""  # decoded, perhaps the beginning of a stop text
        self.stopped = False

    def push(self, token: int) -> str:
        """The new text that is certain now, often ""."""
        self._ids.append(token)
        return self._release(self._decode_new(at_end=False), at_end=False)

    def finish(self) -> str:
        """What is left at the end of the sequence; bytes that form no character become U+FFFD."""
        return self._release(self._decode_new(at_end=True), at_end=True)

    def _decode_new(self, at_end: bool) -> str:
        text = self._tokenizer.decode(self._ids)
        # Bytes at the end that are no character yet are decoded as one U+FFFD.
        incomplete = text.endswith(_REPLACEMENT) and not at_end
        new = text[self._shown : len(text) - incomplete]
        self._shown += len(new)
        if not incomplete:
            self._ids = self._ids[-_CONTEXT:]
            self._shown = len(self._tokenizer.decode(self._ids))
        return new

    def _release(self, new: str, at_end: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [position for stop in self._stop if (position := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        kept = 0 if at_end else max((overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`, but is not all of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
