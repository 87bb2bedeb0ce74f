"""Reads a Dockerfile and a .dockerignore, as far as ours use them."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    name: str  # FROM, RUN, ...
    value: str  # continued lines joined


def instructions(file: Path) -> list[Instruction]:
    """All instructions in order; comments, between continued lines too, are dropped."""
    lines = [line for line in file.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    split = (line.strip().split(None, 1) for line in joined.splitlines() if line.strip())
    return [Instruction(name, " ".join(value.split())) for name, value in split]


def arguments(content: list[Instruction]) -> dict[str, str]:
    """Names and defaults of all ARG instructions."""
    return dict(i.value.split("=", 1) for i in content if i.name == "ARG")


def environment(content: list[Instruction]) -> dict[str, str]:
    """Names and values of all ENV instructions."""
    return dict(pair.split("=", 1) for i in content if i.name == "ENV" for pair in i.value.split())


def copied(instruction: Instruction) -> tuple[list[str], str]:
    """Sources and destination of a COPY."""
    *sources, target = (word for word in instruction.value.split() if not word.startswith("--"))
    return sources, target


def is_ignored(path: str, patterns: list[str]) -> bool:
    """Whether .dockerignore keeps `path` (or a directory above it) out of the build."""
    parts = path.split("/")
    above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    for pattern in patterns:
        tail = pattern.removeprefix("**/")
        for name in above:
            if fnmatch.fnmatch(name, pattern) or (tail != pattern and fnmatch.fnmatch(name.split("/")[-1], tail)):
                return True
    return False


def ignore_patterns(file: Path) -> list[str]:
    patterns = [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
    assert not any(re.match(r"[!#]", pattern) for pattern in patterns), "this reader knows plain patterns only"
    return patterns
