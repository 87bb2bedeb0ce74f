"""Tokens for people to read, control tokens apart from text that spells the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from minimind_jax.tokenizer.load import Tokenizer


def shown(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[tuple[str, bool]]:
    """Yields pieces of text, and whether each is a control token, which stands in angle brackets: ⟨|im_end|⟩."""
    names = {token_id: text for text, token_id in tokenizer.control_tokens.items()}
    for is_control, run in itertools.groupby(ids, key=names.__contains__):
        if is_control:
            yield from ((shown_control(names[token_id]), True) for token_id in run)
        else:
            yield tokenizer.decode(run, skip_special_tokens=False), False


def shown_control(text: str) -> str:
    """A control token's text in angle brackets, in place of its own where it has some."""
    return f"⟨{text[1:-1] if text.startswith('<') and text.endswith('>') else text}⟩"
