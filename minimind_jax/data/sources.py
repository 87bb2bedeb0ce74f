"""Which files a `data.path` names, in which order, with which weight."""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from minimind_jax.errors import UserError


@dataclass(frozen=True)
class Source:
    """One file; its documents are read `weight` times an epoch."""

    path: Path
    weight: int = 1


def parse_sources(spec: str, key: str = "data.path") -> list[Source]:
    """Parses "a.jsonl,b/*.jsonl,c.jsonl:2": comma-separated files or globs, `:2` = integer weight 2.

    Entries keep the order in which they are written; the matches of a glob are sorted by path, `**` goes through
    directories, and the glob's weight holds for each match. A directory that Hugging Face's `save_to_disk` wrote
    stands for its Arrow files. A name with a comma cannot be written.

    Args:
      spec: the value of the config key.
      key: the config key, for messages.

    Raises:
      UserError: no entry, nothing matches, missing or empty file, a directory, a file named twice, a bad weight.
    """
    sources: list[Source] = []
    seen: set[str] = set()
    for entry in filter(None, (part.strip() for part in spec.split(","))):
        name, weight = _split_weight(entry, key)
        for path in _match(name, key):
            real = os.path.realpath(path)
            if real in seen:
                raise UserError(f"{key} names {path} more than once: name it once and give it a weight, {path}:2")
            seen.add(real)
            sources.append(Source(path, weight))
    if not sources:
        raise UserError(f"{key}={spec!r} names no file: give one or more files, e.g. a.jsonl,b/*.jsonl:2")
    return sources


def _split_weight(entry: str, key: str) -> tuple[str, int]:
    name, colon, suffix = entry.rpartition(":")
    if not colon or os.path.sep in suffix or os.path.exists(os.path.expanduser(entry)):
        return entry, 1
    # int() would also take "+2", " 2", "1_0" and other scripts' digits.
    if not (suffix.isascii() and suffix.isdigit() and int(suffix) >= 1):
        raise UserError(f"{key} entry {entry!r}: the weight {suffix!r} is not a whole number from 1 up, as in {name}:2")
    return name, int(suffix)


def _match(name: str, key: str) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_dir():
        paths = _saved_files(path, key)
    elif path.exists() or not glob.has_magic(name):
        paths = [path]
    else:
        paths = [p for p in map(Path, sorted(glob.glob(str(path), recursive=True))) if not p.is_dir()]
        if not paths:
            raise UserError(f"{key}: no file matches {name}")
    for path in paths:
        if not path.exists():
            raise UserError(f"{key}: {path} does not exist: set --config.{key}=FILE.jsonl")
        if not path.is_file():
            raise UserError(f"{key}: {path} is not a regular file: write its lines to a jsonl file first")
        if path.stat().st_size == 0:
            raise UserError(f"{key}: {path} is empty")
    return paths


def _saved_files(directory: Path, key: str) -> list[Path]:
    """The Arrow files of a data set that `datasets` saved, in its order."""
    try:
        state = json.loads((directory / "state.json").read_text("utf-8"))
        return [directory / file["filename"] for file in state["_data_files"]]
    except FileNotFoundError:
        pass  # another kind of directory
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{key}: {directory}/state.json does not name the files of a saved data set") from None
    splits = sorted(path.parent for path in directory.glob("*/state.json"))
    if splits:
        names = ", ".join(path.name for path in splits)
        raise UserError(f"{key}: {directory} holds the data sets {names}: name one, e.g. {splits[0]}")
    suffixes = Counter("".join(path.suffixes) for path in directory.iterdir() if path.is_file() and path.suffix)
    suffix = max(suffixes, key=lambda suffix: suffixes[suffix], default=".jsonl")
    raise UserError(f"{key}: {directory} is a directory: name its files, e.g. {directory}/*{suffix}")
