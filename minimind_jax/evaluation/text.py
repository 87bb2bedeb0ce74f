"""Held-out loss and bits per byte on plain text.

A text is bos + tokens + eos, scored whole up to the model's limit; all but bos are targets. So the
numbers of two models with the same tokenizer compare by `loss`, with different ones by `bits_per_byte`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator

import numpy as np

from minimind_jax.data.marks import Marks
from minimind_jax.data.progress import Progress
from minimind_jax.evaluation.scoring import BATCH_TOKENS, Document, TextScore, score_documents
from minimind_jax.workdir import LoadedModel

_ENCODED_AT_ONCE = 64  # texts


def score_texts(
    model: LoadedModel, texts: Iterable[str], batch_tokens: int = BATCH_TOKENS, progress: Progress | None = None
) -> TextScore:
    """`score_documents` of texts. Marks that one spells out split it into documents, as in training."""
    marks, n_split = Marks(model.tokenizer), 0

    def pieces() -> Iterator[str]:
        nonlocal n_split
        for text in texts:
            n_split += bool(marks.found(text))
            yield from marks.split(text)

    score = score_documents(model, _documents(model, pieces()), batch_tokens, progress)
    if n_split:
        print(f"{n_split} texts were split into documents at their marks, like <|im_start|>", file=sys.stderr)
    return score


def _documents(model: LoadedModel, texts: Iterable[str]) -> Iterator[Document]:
    tokenizer, limit, rest = model.tokenizer, model.config.max_seq_len, iter(texts)
    while some := list(itertools.islice(rest, _ENCODED_AT_ONCE)):
        for text, tokens in zip(some, tokenizer.encode_batch(some), strict=True):
            ids = [tokenizer.bos_id, *tokens, tokenizer.eos_id]
            if truncated := len(ids) > limit:
                ids = ids[:limit]
                # A cut inside a character leaves bytes that decode to U+FFFD: that character counts as not scored.
                text = tokenizer.decode(ids[1:], skip_special_tokens=False).rstrip("\ufffd")
            yield Document(ids, np.ones(len(ids), bool), len(text.encode()), truncated)
