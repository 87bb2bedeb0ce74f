"""Loss by place in the document: does a model use a long context, and where does it lose its way?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_FIRST = 128  # positions of the first range; each further one reaches twice as far


@dataclass(frozen=True)
class PositionScore:
    """Target tokens that have `first` to `last` tokens of their document before them."""

    first: int
    last: int
    target_tokens: int
    loss: float  # nats per target token
    perplexity: float  # exp(loss)


def position_scores(nats: np.ndarray, targets: np.ndarray) -> tuple[PositionScore, ...]:
    """Sums the ranges 1-128, 129-256, 257-512, ... that hold targets.

    Args:
      nats, targets: (T,) negative log-likelihood and number of targets with i + 1 tokens before them, at index i.
    """
    scores, first, last = [], 1, _FIRST
    while first <= len(nats):
        here = slice(first - 1, last)
        if n := int(targets[here].sum()):
            loss = float(nats[here].sum()) / n
            # Beyond 709 nats exp overflows: such a model is broken, and a table no reason to fail.
            scores.append(PositionScore(first, last, n, loss, math.exp(min(loss, 700.0))))
        first, last = last + 1, 2 * last
    return tuple(scores)


def positions_table(scores: Sequence[PositionScore]) -> str:
    """For a terminal."""
    lines = [f"{'tokens before':>15} {'target tokens':>15} {'loss':>10} {'perplexity':>12}"]
    for s in scores:
        lines.append(f"{f'{s.first}-{s.last}':>15} {s.target_tokens:>15,} {s.loss:>10.4f} {s.perplexity:>12.5g}")
    return "\n".join(lines)
