"""Shows rows as the model sees them: segments, targets, context and padding, and what an epoch holds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.text import Text

from minimind_jax.config import Config
from minimind_jax.data.build import open_store
from minimind_jax.data.jsonl import N_REPORTED
from minimind_jax.data.open import DOCUMENTS_OF_STAGE, kind_of, open_rows
from minimind_jax.data.rows import Batch, RowSource
from minimind_jax.data.sources import parse_sources
from minimind_jax.files import locate, recognise
from minimind_jax.tokenizer.show import shown, shown_control

if TYPE_CHECKING:
    from minimind_jax.tokenizer import Tokenizer

TARGET, CONTEXT, CONTROL, PADDING, HEADING = "green", "dim", "magenta", "red", "bold"
# Control characters other than tab and newline are shown by their pictures: data must not steer the terminal.
VISIBLE = {c: 0x2400 + c for c in range(32) if chr(c) not in "\t\n"} | {0x7F: 0x2421} | dict.fromkeys(range(128, 160))


def print_rows(config: Config, tokenizer: Tokenizer, n_rows: int, console: Console) -> None:
    """Prints the files, the epoch and the first `n_rows` rows of training. Raises what `open_rows` raises."""
    data = config.data
    train, val = open_rows(config, tokenizer)
    for source in parse_sources(data.path):
        meta = open_store(source.path, tokenizer, data.cache_dir, data.num_workers, kind_of(config)).meta
        dropped = f", {meta.n_dropped} dropped" if meta.n_dropped else ""
        console.print(
            f"{source.path} ({recognise(source.path).name}): {meta.n_docs} sequences, {meta.n_tokens} tokens, "
            f"{source.weight}x an epoch, {meta.n_bad} bad lines{dropped}"
        )
        for phrase, count in meta.notes.items():
            console.print(Text(f"  {count} x {phrase}".translate(VISIBLE)))
        for bad in meta.bad[:N_REPORTED]:
            console.print(Text(f"  {locate(source.path, bad.line)}: {bad.reason}".translate(VISIBLE)))
    name = DOCUMENTS_OF_STAGE[config.stage]
    console.print(f"training, an epoch: {_describe(train, name)}")
    held_out = _describe(val, name) if val else "none (data.val_path, data.val_fraction)"
    console.print(f"validation: {held_out}")
    console.print(
        Text.assemble(
            "legend: ▏2 = second segment of the row, ",
            ("target", TARGET),
            ", ⟦",
            ("context", CONTEXT),
            "⟧, ",
            (shown_control("<|control token|>"), CONTROL),
            " (in angle brackets; text that spells one, as <|im_end|>, is ordinary tokens), ",
            ("░ padding", PADDING),
            ", → = the last token's target, which opens the next row (and is context there)",
        )
    )
    n_rows = min(n_rows, train.rows_per_epoch)
    batch = train.batch(np.arange(n_rows))
    for i in range(n_rows):
        row = {name: values[i] for name, values in batch.items()}
        console.print()
        console.print(Text(f"row {i}: {_shares(row)}, {row['segment_ids'].max()} segments", HEADING))
        for line in render_row(row, tokenizer):
            console.print(line)
    if n_rows:
        console.print()
        console.print(f"first {n_rows} rows: {_shares(batch)}")


def render_row(row: Batch, tokenizer: Tokenizer) -> Iterator[Text]:
    """One styled text for each segment of a row, arrays (T,); readable without colours too.

    A token counts as a target where the token before it, in this row, is asked to predict it.
    """
    segment_ids, mask = row["segment_ids"], row["target_mask"]
    for segment in range(1, int(segment_ids.max()) + 1):
        (places,) = np.nonzero(segment_ids == segment)
        first, last = int(places[0]), int(places[-1])
        is_target = np.concatenate([[False], mask[first:last]])
        text = Text(f"▏{segment} ")
        for target, run in itertools.groupby(zip(places, is_target, strict=True), key=lambda place: bool(place[1])):
            pieces = _styled(row["tokens"][[place for place, _ in run]], tokenizer, TARGET if target else CONTEXT)
            text.append(pieces if target else Text.assemble("⟦", pieces, "⟧"))
        if mask[last]:
            text.append(" → ").append(_styled(row["targets"][last : last + 1], tokenizer, TARGET))
        yield text
    n_padding = int((segment_ids == 0).sum())
    if n_padding:
        yield Text(f"░ {n_padding} tokens of padding", PADDING)


def _styled(ids: np.ndarray, tokenizer: Tokenizer, style: str) -> Text:
    text = Text()
    for piece, is_control in shown(tokenizer, ids.tolist()):
        text.append(piece.translate(VISIBLE), CONTROL if is_control else style)
    return text


def _shares(batch: Batch) -> str:
    n = batch["segment_ids"].size
    real, targets = int((batch["segment_ids"] > 0).sum()), int(batch["target_mask"].sum())
    return f"{real} real tokens ({100 * real / n:.2f} %), {targets} targets ({100 * targets / n:.2f} %)"


def _describe(rows: RowSource, documents: str) -> str:
    n = rows.rows_per_epoch * rows.seq_len
    return (
        f"{rows.n_docs} {documents}, {rows.n_tokens} tokens, {rows.rows_per_epoch} rows of {rows.seq_len}; "
        f"real tokens {100 * rows.n_tokens / n:.2f} %, targets {100 * rows.n_targets / n:.2f} %"
    )
