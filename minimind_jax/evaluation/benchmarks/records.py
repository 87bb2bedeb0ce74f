"""Files of multiple-choice records: jsonl, JSON arrays, parquet, Arrow, also compressed."""

from __future__ import annotations

import re
from pathlib import Path

from minimind_jax.data.jsonl import BadLine, LineError, parse_object, read_jsonl
from minimind_jax.errors import UserError
from minimind_jax.evaluation.benchmarks.forms import Form, read_item
from minimind_jax.evaluation.benchmarks.item import ChoiceItem
from minimind_jax.files import locate

_SPLIT = re.compile(r"(?<![A-Za-z])(test|validation|valid|val|dev)(?![A-Za-z])", re.IGNORECASE)


def read_items(path: Path, form: Form) -> list[ChoiceItem]:
    """All questions of a file.

    Raises:
      UserError: it cannot be read, has none, or one that is not of this form or has no answer: the first of them.
    """
    labels = _labels(path) if form.labels else None
    items: list[ChoiceItem] = []

    def parse(line: bytes) -> ChoiceItem:
        record = parse_object(line)
        if labels and "label" not in record:
            if len(items) >= len(labels):
                raise LineError(f"has no label: {_labels_file(path)} ends with that of record {len(labels)}")
            record["label"] = labels[len(items)]
        return read_item(form, record, len(items) + 1)

    for number, item in read_jsonl(path, parse):
        if isinstance(item, BadLine):
            raise UserError(f"{locate(path, number)}: {item.reason}")
        items.append(item)
    if not items:
        raise UserError(f"{path} has no question")
    if labels and len(labels) > len(items):
        raise UserError(f"{_labels_file(path)} has {len(labels)} labels, {path} only {len(items)} questions")
    return items


def training_file(path: Path) -> Path | None:
    """What lies beside an evaluation file as its training split, train.jsonl of valid.jsonl; None if nothing does."""

    def train(match: re.Match[str]) -> str:
        split = match.group()
        return "TRAIN" if split.isupper() else "Train" if split[0].isupper() else "train"

    beside = path.with_name(_SPLIT.sub(train, path.name))
    return beside if beside != path and beside.is_file() else None


def _labels_file(path: Path) -> Path:
    return path.with_name(f"{path.name.partition('.')[0]}-labels.lst")


def _labels(path: Path) -> list[str] | None:
    """Those of the file beside, one a line; None if there is none."""
    try:
        return _labels_file(path).read_text("utf-8").split()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{_labels_file(path)}, which has the answers of {path}, cannot be read: {e}") from None
