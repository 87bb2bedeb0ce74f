"""Best-fit packing of sequences into rows, planned once for a whole data set and kept in the cache."""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Raised whenever the same lengths give another plan: rows are addressed by their number in it.
VERSION = 1


@dataclass(frozen=True)
class Plan:
    """Which items stand in which row: those of row r are order[ends[r] : ends[r + 1]].

    Attributes:
      order: (n_items,) int64, each item once.
      ends: (n_rows + 1,) int64, from 0.
    """

    order: np.ndarray
    ends: np.ndarray

    @property
    def n_rows(self) -> int:
        return len(self.ends) - 1

    def row(self, r: int) -> np.ndarray:
        return self.order[self.ends[r] : self.ends[r + 1]]


def best_fit(lengths: np.ndarray, capacity: int, max_items: int = 0) -> Plan:
    """Best-fit decreasing (Johnson 1974): longest first, each into the fullest row that still has room.

    Needs at most 11/9 of the best possible number of rows, in practice hardly more than it. One million items take
    about two seconds.

    Args:
      lengths: (n,) integers, 1 <= length <= capacity.
      capacity: of a row.
      max_items: in a row; 0 = any number.
    """
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows that are open, by the room that they have
    rooms = 0  # bit r is set while by_room[r] has rows
    for item in np.argsort(-lengths.astype(np.int64), kind="stable").tolist():
        length = int(lengths[item])
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1  # the lowest bit set: the fullest row
            row = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(item)
        left = room - length
        if left and len(rows[row]) != max_items:
            by_room[left].append(row)
            rooms |= 1 << left
    ends = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    order = np.fromiter((item for row in rows for item in row), np.int64, len(lengths))
    return Plan(order, ends)


def cached_best_fit(lengths: np.ndarray, capacity: int, max_items: int, cache: Path) -> Plan:
    """`best_fit`, read from `cache` where it was planned before."""
    key = hashlib.sha256(f"best-fit {VERSION} {capacity} {max_items} ".encode() + lengths.astype("<i8").tobytes())
    path = cache / "plans" / f"{key.hexdigest()[:32]}.npz"
    try:
        with np.load(path) as stored:
            return Plan(stored["order"], stored["ends"])
    except Exception:  # not there, or damaged, and then zipfile and numpy raise many things: planned anew
        pass
    plan = best_fit(lengths, capacity, max_items)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.{secrets.token_hex(8)}.tmp.npz")  # pids repeat on machines that share it
    try:
        np.savez(partial, order=plan.order, ends=plan.ends)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return plan
