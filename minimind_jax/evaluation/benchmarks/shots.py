"""Solved examples before each question, drawn as lm-eval (0.4.13, api/samplers.py) draws them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minimind_jax.errors import UserError
from minimind_jax.evaluation.benchmarks.item import ChoiceItem

_SEED = 1234  # lm-eval's default


@dataclass(frozen=True)
class Shots:
    """The examples of each question, and where they come from, for the user."""

    examples: Sequence[Sequence[ChoiceItem]]
    source: str


def no_shots(items: Sequence[ChoiceItem]) -> Shots:
    return Shots([()] * len(items), "")


def drawn(items: Sequence[ChoiceItem], n: int, path: Path, pool: Sequence[ChoiceItem] | None, source: Path) -> Shots:
    """n at random for each question, the same in every run.

    Args:
      path: of the questions. pool: the examples of the file `source`; None = the other questions of the same file.

    Raises:
      UserError: too few.
    """
    rng, examples = random.Random(_SEED), []
    if pool is not None:
        if len(pool) < n:
            raise UserError(f"--shots {n} is more than the {len(pool)} examples of {source}")
        return Shots([rng.sample(pool, n) for _ in items], str(source))
    if len(items) <= n:
        raise UserError(
            f"--shots {n} needs {n + 1} questions in {path}, which has {len(items)}: name a file of examples"
        )
    for item in items:
        chosen = [one for one in rng.sample(items, n + 1) if not _alike(one, item)][:n]
        if len(chosen) < n:  # it stands there more than once
            others = [one for one in items if not _alike(one, item)]
            if len(others) < n:
                raise UserError(f"--shots {n} is more than the {len(others)} other questions of {path}")
            chosen = rng.sample(others, n)
        examples.append(chosen)
    return Shots(examples, f"{path} itself, without the question")


def first_of_subject(
    items: Sequence[ChoiceItem], n: int, path: Path, pools: Mapping[str, Sequence[ChoiceItem]] | None, source: Path
) -> Shots:
    """The first n of each question's subject.

    Args:
      path: of the questions. pools: the examples in `source` by subject; None = the other questions of the subject.

    Raises:
      UserError: too few, or none of a subject.
    """
    own: dict[str, list[ChoiceItem]] = {}
    for item in items:
        own.setdefault(item.group, []).append(item)
    examples = []
    for item in items:
        if pools is not None:
            pool: Sequence[ChoiceItem] = pools.get(item.group, ())
            where = f"{source} has for {item.group}"
        else:
            pool = [one for one in own[item.group] if not _alike(one, item)]
            where = f"{path} has beside the question for {item.group}"
        if len(pool) < n:
            raise UserError(f"--shots {n} is more than the {len(pool)} examples that {where}")
        examples.append(pool[:n])
    return Shots(examples, str(source) if pools is not None else f"{path} itself, without the question")


def _alike(one: ChoiceItem, other: ChoiceItem) -> bool:
    return (one.prompt, one.choices, one.gold) == (other.prompt, other.choices, other.gold)
