"""Marks that separate samples inside pretraining texts: "<|im_start|>one<|im_end|> <|im_start|>two<|im_end|>"."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minimind_jax.tokenizer import Tokenizer

# Besides the tokenizer's own bos and eos, where it knows them as control tokens; and whether they open a sample.
_OTHERS = {"<|im_start|>": True, "<|im_end|>": False, "<s>": True, "</s>": False, "<|endoftext|>": False}
_ROLES = ("system", "user", "assistant", "tool", "developer")


class Marks:
    """The texts of a tokenizer's control tokens that begin or end a sample.

    Only pretraining texts are looked through for them: in a conversation they are what somebody wrote.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        bos_id, eos_id, known = tokenizer.bos_id, tokenizer.eos_id, tokenizer.control_tokens
        opening = {text for text, opens in _OTHERS.items() if opens and text in known}
        # Where the tokenizer has no bos, what opens a sample stands for itself.
        ids = {text: known[text] if bos_id == eos_id else bos_id for text in opening}
        ids |= {text: eos_id for text, opens in _OTHERS.items() if not opens and text in known}
        ids |= {text: token_id for text, token_id in known.items() if token_id in (bos_id, eos_id)}
        opening |= {text for text, token_id in ids.items() if token_id == bos_id != eos_id}
        self._ids = ids
        self._pattern = re.compile(_any_of(ids))
        self._turn = re.compile(f"(?:{_any_of(opening)})(?:{_any_of(_ROLES)})\n")

    def found(self, text: str) -> str:
        """The different ones in `text` for a message: "`<|im_start|>`, `<|im_end|>`"; "" where there is none."""
        return ", ".join(f"`{mark}`" for mark in dict.fromkeys(self._pattern.findall(text)))

    def has_turns(self, text: str) -> bool:
        """Whether it looks like a rendered conversation: a mark, a role and a line break."""
        return self._turn.search(text) is not None

    def split(self, text: str) -> list[str]:
        """What stands before, between and after the marks, without white space around it and without what is blank.

        Any mark separates, whether or not it has a partner. A text without marks stays as it is.
        """
        if not self._pattern.search(text):
            return [text]
        return [piece for piece in map(str.strip, self._pattern.split(text)) if piece]

    def parts(self, text: str) -> list[str | int]:
        """The text in pieces, a token id in the place of each mark."""
        parts: list[str | int] = []
        at = 0
        for match in self._pattern.finditer(text):
            parts += [text[at : match.start()], self._ids[match[0]]]
            at = match.end()
        return [part for part in [*parts, text[at:]] if part != ""]


def _any_of(texts: Iterable[str]) -> str:
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return "|".join(map(re.escape, longest_first)) or "(?!)"
