"""What sampled answers look like: a model that was tuned too hard repeats itself, or never ends."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean


def repetition_rate(ids: Sequence[int], n: int = 4) -> float:
    """Share of the n-grams of tokens that occurred before in the same answer: 0 = no loop, and for less than n tokens.

    Welleck et al. 2019, "Neural Text Generation with Unlikelihood Training": seq-rep-n, 1 - unique / all n-grams.
    """
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def describe_answers(answers: Sequence[Sequence[int]], max_new_tokens: int) -> dict[str, float]:
    """Means over at least one answer.

    Args:
      answers: the new tokens of each, without the end token, as `inference.generate` returns them.
      max_new_tokens: what generation was limited to; an answer that long has not written its end token.

    Returns: `repetition` (mean of `repetition_rate`), `length` (mean, tokens), `unfinished` (share).
    """
    return {
        "repetition": fmean(repetition_rate(ids) for ids in answers),
        "length": fmean(len(ids) for ids in answers),
        "unfinished": fmean(len(ids) >= max_new_tokens for ids in answers),
    }
