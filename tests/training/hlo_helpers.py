"""What a compiled program sends between devices: its HLO's collectives, times the trips of the loops around them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast|ragged-all-to-all"
_COLLECTIVE = re.compile(rf"= (.+?) ({_KINDS})(?:-start)?\(")
_CALL = re.compile(r"\b(?:body|condition|to_apply|calls|true_computation|false_computation)=%([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]")
_BYTES = {"pred": 1, "bf16": 2, "f32": 4, "f64": 8, "s32": 4, "u32": 4, "s64": 8, "u64": 8, "s8": 1, "u8": 1}


class Collective(NamedTuple):
    kind: str
    shapes: tuple[tuple[int, ...], ...]  # of the results on one device
    bytes: int  # of the results on one device, once
    times: int  # a run of the program
    source: str  # JAX's name of the operation

    @property
    def total(self) -> int:
        return self.bytes * self.times


def collectives(hlo: str) -> list[Collective]:
    """All of them. Raises ValueError for one inside a loop whose number of trips XLA does not know."""
    computations, entry = _computations(hlo)
    return list(_walk(computations, entry, 1))


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    found: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in hlo.splitlines():
        header = re.match(r"(ENTRY )?%([\w.-]+) \(.*\{$", line)
        if header:
            lines = found[header[2]] = []
            entry = header[2] if header[1] else entry
        else:
            lines.append(line)
    return found, entry


def _walk(computations: dict[str, list[str]], name: str, times: int | None) -> Iterator[Collective]:
    for line in computations[name]:
        if match := _COLLECTIVE.search(line):
            if times is None:
                raise ValueError(f"a collective in a loop of unknown length: {line.strip()[:200]}")
            shapes, size = _shapes(match[1])
            source = re.search(r'op_name="([^"]*)"', line)
            yield Collective(match[2], shapes, size, times, source[1] if source else "")
            continue  # its to_apply is a scalar sum
        inner = times
        if " while(" in line:
            trips = _TRIPS.search(line)
            inner = int(trips[1]) * times if trips and times is not None else None
        called = _CALL.findall(line)
        for branches in _BRANCHES.findall(line):
            called += [branch.strip().lstrip("%") for branch in branches.split(",")]
        for callee in called:
            yield from _walk(computations, callee, inner)


def _shapes(text: str) -> tuple[tuple[tuple[int, ...], ...], int]:
    found = [(kind, tuple(int(n) for n in dims.split(",") if n)) for kind, dims in _SHAPE.findall(text)]
    return tuple(dims for _, dims in found), sum(_BYTES[kind] * math.prod(dims) for kind, dims in found)
