"""Reads the files of a run that may be at work: half-written lines, damaged ones, and who holds its lock."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_TAIL = 2**18  # bytes read first where only the newest lines are asked for
_LOCKS = Path("/proc/locks")


@dataclass(frozen=True)
class Lines:
    lines: list[dict[str, Any]]
    version: str = ""  # another one when the file was written anew: lines that were read may be gone
    problem: str | None = None


def read_object(path: Path) -> tuple[dict[str, Any], str | None]:
    """A JSON object and what is wrong with it; {} where there is none."""
    try:
        with _open(path) as file:
            content = _from_json(file.read())
    except FileNotFoundError:
        return {}, None
    except OSError as e:
        return {}, f"{path.name} cannot be read ({e.strerror or e})"
    except (ValueError, RecursionError):
        content = None
    return (content, None) if isinstance(content, dict) else ({}, f"{path.name} is damaged")


def read_lines(path: Path, after: int) -> Lines:
    """The complete lines whose `step` comes after `after`: steps ascend, so it reads from the end as far as it must.

    Damaged lines are left out, and the first one is named.
    """
    try:
        with _open(path) as file:
            status = os.fstat(file.fileno())
            tail = _TAIL if after >= 0 else status.st_size
            while True:
                begin = max(0, status.st_size - tail)
                lines, damaged = _parse(_complete(file, begin, status.st_size))
                if begin == 0 or (lines and lines[0]["step"] <= after):
                    break
                tail *= 4
            problem = None
            if damaged is not None:
                number = _count_lines(file, damaged) + 1
                problem = f"{path.name}:{number} is damaged and left out: delete this line, or mend it"
            version = f"{status.st_dev}-{status.st_ino}"
            return Lines([line for line in lines if line["step"] > after], version, problem)
    except FileNotFoundError:
        return Lines([])
    except OSError as e:
        return Lines([], problem=f"{path.name} cannot be read ({e.strerror or e})")


def last_step(path: Path) -> int:
    """The step of the last complete line that is intact; 0 if there is none."""
    with suppress(OSError), _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        for tail in (_TAIL, size):
            lines, _ = _parse(_complete(file, max(0, size - tail), size))
            if lines:
                return int(lines[-1]["step"])
    return 0


def modified_at(path: Path) -> float:
    """Unix seconds; 0 where there is no file."""
    with suppress(OSError):
        return path.stat(follow_symlinks=False).st_mtime
    return 0.0


def held_locks() -> set[str]:
    """Device and inode of every file that a process of this machine has locked, as Linux lists them; {} elsewhere."""
    with suppress(OSError):
        return {text for line in _LOCKS.read_text().splitlines() for text in line.split() if text.count(":") == 2}
    return set()


def is_locked(path: Path, locks: set[str]) -> bool:
    with suppress(OSError):
        status = path.stat(follow_symlinks=False)
        return f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}" in locks
    return False


def _open(path: Path) -> BinaryIO:
    """Opens a regular file. Raises OSError for everything else: links may lead anywhere, and pipes wait for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("no regular file")
    return os.fdopen(descriptor, "rb")


def _from_json(text: bytes) -> Any:
    return json.loads(text, parse_constant=lambda _: None)  # NaN is no JSON, and no number to draw


def _complete(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The whole lines between two places of a file, each with where it begins."""
    file.seek(begin)
    *lines, _ = file.read(end - begin).split(b"\n")  # the last may be half written
    for number, line in enumerate(lines):
        if number or not begin:  # the first may be the end of one
            yield begin, line
        begin += len(line) + 1


def _parse(lines: Iterator[tuple[int, bytes]]) -> tuple[list[dict[str, Any]], int | None]:
    """The lines' objects, and where the first damaged one begins."""
    parsed, damaged = [], None
    for begin, text in lines:
        try:
            line = _from_json(text)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict) and type(line.get("step")) is int:
            parsed.append(line)
        elif damaged is None:
            damaged = begin
    return parsed, damaged


def _count_lines(file: BinaryIO, end: int) -> int:
    file.seek(0)
    return file.read(end).count(b"\n")
