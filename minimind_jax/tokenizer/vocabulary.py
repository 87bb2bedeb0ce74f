"""Two tokenizers side by side: which entry of one is which of the other."""

from __future__ import annotations

import re

import numpy as np

from minimind_jax.tokenizer.load import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's entry for a byte that no other covers


def counterparts(old: Tokenizer, new: Tokenizer) -> np.ndarray:
    """For each id of `new` (V,) the id in `old` of the entry with the same text, -1 where `old` has none.

    The text is what counts, not how a file writes it: "Ġthe" of a byte-level BPE is "▁the" of SentencePiece.
    """
    texts, by_text = _texts(old), dict[bytes, int]()
    for token_id in sorted(texts):
        by_text.setdefault(texts[token_id], token_id)
    ids = np.full(new.vocab_size, -1)
    for token_id, text in _texts(new).items():
        ids[token_id] = by_text.get(text, -1)
    for entry, token_id in new.vocabulary.items():  # of several with one text, that of the same spelling
        same = old.vocabulary.get(entry)
        if same is not None and ids[token_id] >= 0 and texts[same] == texts[int(ids[token_id])]:
            ids[token_id] = same
    return ids


def _texts(tokenizer: Tokenizer) -> dict[int, bytes]:
    """What each id adds to a text, as UTF-8."""
    if tokenizer.is_byte_level:
        return {i: tokenizer.token_bytes(i) or b"" for i in tokenizer.vocabulary.values()}
    anchor = next((i for entry, i in tokenizer.vocabulary.items() if entry in ("a", "▁a")), None)
    if anchor is None:
        return {i: entry.encode() for entry, i in tokenizer.vocabulary.items()}
    before = tokenizer.decode([anchor])

    def text(entry: str, token_id: int) -> bytes:
        if byte := _BYTE.fullmatch(entry):
            return bytes.fromhex(byte[1])
        # Behind another token, since decoders drop the space that a text begins with.
        return tokenizer.decode([anchor, token_id], skip_special_tokens=False).removeprefix(before).encode()

    return {i: text(entry, i) for entry, i in tokenizer.vocabulary.items()}
