"""The texts of files for training and judging a tokenizer: streaming, by language, a stable share held out."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from minimind_jax.errors import UserError
from minimind_jax.files import MAX_LINE_BYTES, locate, open_lines

LANGUAGES: tuple[Language, ...] = ("zh", "en")
Language = Literal["zh", "en"]

_CJK_SHARE = 0.2  # Chinese text with some code, digits and Latin names in it still is Chinese


@dataclass
class Skipped:
    """Unusable lines so far: how many, and where the first stands."""

    count: int = 0
    first: str = ""


@dataclass(frozen=True)
class Corpus:
    """Documents of files of any form that `files` knows, one a record.

    Attributes:
      paths: the files, read in this order.
      holdout: share of the documents, 0 to 1, chosen by their content alone.
      held_out: read just those documents; otherwise all others.
      skipped: unusable lines of the latest pass.
    """

    paths: Sequence[Path]
    holdout: float = 0.0
    held_out: bool = False
    skipped: Skipped = field(default_factory=Skipped)

    def __iter__(self) -> Iterator[str]:
        """Yields the text of every usable line. Raises UserError where a file cannot be read."""
        self.skipped.count, self.skipped.first = 0, ""
        for path in self.paths:
            for number, line in _lines(path):
                text = _text_of_line(line)
                if text is None:
                    self.skipped.count += 1
                    self.skipped.first = self.skipped.first or locate(path, number)
                elif (position(text) < self.holdout) == self.held_out:
                    yield text


def find_files(patterns: Sequence[str]) -> list[Path]:
    """The files that globs name, each once, in a stable order. Raises UserError where a glob finds none."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        paths = sorted(Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
        if not paths:
            raise UserError(f"--data {pattern} matches no file")
        found |= dict.fromkeys(paths)
    return list(found)


def language_of(text: str) -> Language:
    """zh where a fifth of the characters that are not white space are CJK ideographs, else en."""
    visible = sum(not c.isspace() for c in text)
    ideographs = sum("\u3400" <= c <= "\u9fff" or "\uf900" <= c <= "\ufaff" or c >= "\U00020000" for c in text)
    return "zh" if ideographs > _CJK_SHARE * visible else "en"


def position(text: str, salt: str = "") -> float:
    """Where content puts a text in [0, 1), evenly: the same on every machine, whatever stands around it."""
    digest = hashlib.sha256((salt + text).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def texts_of(record: Any) -> list[str]:
    """The texts of a record {"text"}, {"conversations" | "messages"} or {"chosen", "rejected"[, "prompt"]}.

    Each different text of a preference pair comes once. Fields that are missing or no strings give nothing.
    """
    if not isinstance(record, dict):
        return []
    if isinstance(record.get("text"), str):
        return [record["text"]]
    for key in ("conversations", "messages"):
        if key in record:
            return _message_texts(record[key])
    sides = [text for key in ("prompt", "chosen", "rejected") for text in _message_texts(record.get(key))]
    return list(dict.fromkeys(sides))


def _message_texts(messages: Any) -> list[str]:
    if isinstance(messages, str):
        return [messages]
    if not isinstance(messages, list):
        return []
    fields = [m.get(key) for m in messages if isinstance(m, dict) for key in ("reasoning_content", "content")]
    return [text for text in fields if isinstance(text, str) and text]


def _text_of_line(line: bytes) -> str | None:
    if len(line) > MAX_LINE_BYTES:
        return None
    try:
        text = "\n".join(texts_of(json.loads(line.decode())))
        text.encode()  # "\ud800" is JSON, but no text
    except (ValueError, RecursionError):
        return None
    return text if text.strip() else None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank and their numbers; of one that is too long, a start that is too long as well."""
    with open_lines(path) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 2):
            number += 1
            rest = line
            while not rest.endswith(b"\n") and (rest := file.readline(2**20)):
                pass
            if line.strip():
                yield number, line
