"""Packing items of multiple choice into rows, so that what they share is computed once.

A row is a tree laid flat: tokens that all its items begin with, then for each item the rest of its context followed
by its continuations. A token sees what stands before it on its own path through the tree, and its position counts
along that path:

    row        Q1 A1 Q2 A2 | Q3 x y | z ... | Q4 x ...         a few-shot preamble and its items
    item       0  0  0  0  | 1  1 1 | 1 ... | 2  2 ...         0: shared by all
    branch     0  0  0  0  | 0  1 1 | 2 ... | 0  1 ...         0: of the context; then one a continuation
    position   0  1  2  3  | 4  5 6 | 5 ... | 4  5 ...

The last token of a continuation predicts nothing that is asked for and is left out: one-token continuations
(letters) need no place at all.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minimind_jax.config import ModelConfig
from minimind_jax.inference.cache import power_of_two

_SHORTEST, _LONGEST = 256, 4096  # rows; an item that is longer still goes alone in one of its own length
_GROUPS = 4  # items within this factor of length share a program
_MIN_QUERIES = 16
# Operations of one attention score outside of the products, about.
_SOFTMAX = 40


class Item(NamedTuple):
    """A context of at least one token with continuations of at least one."""

    number: int  # of the caller's item
    choices: Sequence[int]  # which of its continuations these are
    context: Sequence[int]
    continuations: Sequence[Sequence[int]]

    @property
    def length(self) -> int:
        """Tokens in a row of its own."""
        return len(self.context) + sum(len(tokens) - 1 for tokens in self.continuations)

    @property
    def queries(self) -> int:
        return sum(map(len, self.continuations))


@dataclass(frozen=True)
class Row:
    """Items that share their first `shared` tokens, and no row's room."""

    items: Sequence[Item]
    shared: int

    @property
    def queries(self) -> int:
        return sum(item.queries for item in self.items)


@dataclass(frozen=True)
class Rows:
    """Rows of one size, and the places that predict continuations ("queries")."""

    rows: Sequence[Row]
    length: int  # T
    queries: int  # Q


class Arrays(NamedTuple):
    """What the device reads: B rows, T tokens, Q queries; all int32, of numpy until they are there."""

    tokens: Any  # (B, T)
    positions: Any  # (B, T)
    items: Any  # (B, T), -1 = padding
    branches: Any  # (B, T)
    at: Any  # (B, Q), where in the row a query stands
    targets: Any  # (B, Q), the token that it asks for


def pack(config: ModelConfig, items: Sequence[Item]) -> list[Rows]:
    """Lays all items into rows; for each group of about equally long ones the cheapest row length is taken."""
    groups: dict[int, list[Item]] = {}
    for item in items:
        size = _SHORTEST
        while size < item.length:
            size *= _GROUPS
        groups.setdefault(size, []).append(item)
    return [_pack_group(config, group) for _, group in sorted(groups.items())]


def _pack_group(config: ModelConfig, items: list[Item]) -> Rows:
    items = sorted(items, key=lambda item: tuple(item.context))  # equal beginnings side by side
    common = [_common(a.context, b.context) for a, b in itertools.pairwise(items)]
    longest = max(item.length for item in items)
    lengths = [power_of_two(longest, _SHORTEST)]
    while lengths[-1] < _LONGEST:
        lengths.append(2 * lengths[-1])
    filled = [(length, _fill(items, common, length)) for length in lengths]
    length, rows = min(filled, key=lambda one: len(one[1]) * _row_cost(config, one[0]))
    return Rows(rows, length, power_of_two(max(row.queries for row in rows), _MIN_QUERIES))


def _fill(items: Sequence[Item], common: Sequence[int], length: int) -> list[Row]:
    """Items in their order, as many a row as go; `common[i]` is what items i and i + 1 begin with alike."""
    rows, first, shared, total = [], 0, len(items[0].context), items[0].length
    for i in range(1, len(items)):
        new_shared, new_total = min(shared, common[i - 1]), total + items[i].length
        if new_total - (i - first) * new_shared <= length:
            shared, total = new_shared, new_total
            continue
        rows.append(Row(items[first:i], shared))
        first, shared, total = i, len(items[i].context), items[i].length
    return [*rows, Row(items[first:], shared)]


def _row_cost(config: ModelConfig, length: int) -> float:
    """Operations of a row, up to a factor: products with weights, and attention over half of the square."""
    q_size, kv_size = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    weights = config.dim * (2 * q_size + 2 * kv_size + 3 * config.ffn_dim)
    return length * (2 * weights + length / 2 * (4 * q_size + _SOFTMAX * config.n_heads))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    n = min(len(a), len(b))
    different = np.flatnonzero(np.asarray(a[:n]) != np.asarray(b[:n]))
    return int(different[0]) if len(different) else n


def arrays(rows: Sequence[Row], n_rows: int, length: int, queries: int) -> Arrays:
    """The rows as arrays, with empty ones up to `n_rows`."""
    shapes = [(n_rows, length)] * 4 + [(n_rows, queries)] * 2
    out = Arrays(*(np.zeros(shape, np.int32) for shape in shapes))
    out.items[:] = -1
    for r, row in enumerate(rows):
        end = _lay(out, r, 0, row.items[0].context[: row.shared], 0, (0, 0))
        query = 0
        for i, item in enumerate(row.items, 1):
            end = _lay(out, r, end, item.context[row.shared :], row.shared, (i, 0))
            last = end - 1 if len(item.context) > row.shared else row.shared - 1
            for branch, tokens in enumerate(item.continuations, 1):
                stop = query + len(tokens)
                out.targets[r, query:stop] = tokens
                out.at[r, query:stop] = [last, *range(end, end + len(tokens) - 1)]
                end, query = _lay(out, r, end, tokens[:-1], len(item.context), (i, branch)), stop
    return out


def _lay(out: Arrays, r: int, start: int, tokens: Sequence[int], position: int, node: tuple[int, int]) -> int:
    """Writes one node of the tree into row r from `start` on; returns its end."""
    end = start + len(tokens)
    out.tokens[r, start:end] = tokens
    out.positions[r, start:end] = np.arange(position, position + len(tokens))
    out.items[r, start:end], out.branches[r, start:end] = node
    return end
