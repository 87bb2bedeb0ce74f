"""How well a tokenizer compresses text, by language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from minimind_jax.errors import UserError
from minimind_jax.tokenizer.corpus import LANGUAGES, Language, language_of
from minimind_jax.tokenizer.load import Tokenizer
from minimind_jax.tokenizer.show import shown

_BATCH = 256  # texts
_TOP = 12  # tokens listed a language


@dataclass
class Report:
    """Sums over the texts of one language."""

    texts: int = 0
    characters: int = 0
    n_bytes: int = 0
    tokens: int = 0
    lossy: int = 0  # texts that do not come back from their tokens
    unknown: int = 0  # tokens that stand for what the vocabulary lacks
    counts: Counter[int] = field(default_factory=Counter)  # by token id

    @property
    def chars_per_token(self) -> float:
        return self.characters / max(self.tokens, 1)

    @property
    def bytes_per_token(self) -> float:
        return self.n_bytes / max(self.tokens, 1)


def measure(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[Language, Report]:
    """Tokenizes plain texts, streaming, and sums up by language. Empty languages have an all-zero report."""
    reports = {name: Report() for name in LANGUAGES}
    for batch in _batches(texts):
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            report = reports[language_of(text)]
            report.texts += 1
            report.characters += len(text)
            report.n_bytes += len(text.encode())
            report.tokens += len(ids)
            report.lossy += tokenizer.decode(ids, skip_special_tokens=False) != text
            report.counts.update(ids)
    for report in reports.values():
        report.unknown = report.counts[tokenizer.unk_id] if tokenizer.unk_id is not None else 0
    return reports


def format_reports(tokenizer: Tokenizer, reports: dict[Language, Report]) -> str:
    """The table and the tokens that `inspect` prints. Raises UserError where no text was measured."""
    used = {name: report for name, report in reports.items() if report.texts}
    if not used:
        raise UserError("no usable text to measure")
    titles = ("", "texts", "characters", "tokens", "chars/token", "bytes/token", "lossy texts", "unknown tokens")
    rows = [titles]
    for name, r in used.items():
        ratios = (f"{r.chars_per_token:.4f}", f"{r.bytes_per_token:.4f}")
        rows.append(
            (name, f"{r.texts:,}", f"{r.characters:,}", f"{r.tokens:,}", *ratios, f"{r.lossy:,}", f"{r.unknown:,}")
        )
    lines = [f"{tokenizer.path}: {tokenizer.vocab_size:,} entries", *_align(rows)]
    for name, report in used.items():
        common = [token_id for token_id, _ in report.counts.most_common(_TOP)]
        texts = {i: tokenizer.decode([i]) for i in report.counts}
        own = (i for i, text in texts.items() if language_of(text) == name)
        longest = sorted(own, key=lambda i: (-len(texts[i]), i))[:_TOP]
        lines.append(f"{name} most common: {_show(tokenizer, common)}")
        lines.append(f"{name} longest: {_show(tokenizer, longest)}")
    used_ids = set().union(*(report.counts for report in used.values()))
    lines.append(f"{len(used_ids):,} of {tokenizer.vocab_size:,} entries occur")
    return "\n".join(lines)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    stream = iter(texts)
    while batch := list(islice(stream, _BATCH)):
        yield batch


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _show(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    pieces = (piece for i in ids for piece in shown(tokenizer, [i]))
    return " ".join(text if is_control else repr(text) for text, is_control in pieces)
