"""What a task is: items from a file or from a fixed generator, which any model can be run on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from minimind_jax.evaluation.result import TaskResult
from minimind_jax.workdir import LoadedModel

Item = TypeVar("Item")


@dataclass(frozen=True)
class TaskOptions:
    """What the user may choose; a task refuses what it does not know, see `tasks.open_task`."""

    path: Path | None = None  # of the task's file or directory, for tasks that read one
    shots: int = 0  # solved examples before each item
    shots_from: Path | None = None  # file of the examples; None = what the task has of its own
    limit: int | None = None  # items; None = all
    chat: bool | None = None  # through the chat template, or as plain text; None = the task's own way
    samples: int = 1  # answers an item
    temperature: float = 0.0
    pass_at: tuple[int, ...] = ()  # the k of pass@k; () = 1 and `samples`
    max_new_tokens: int | None = None  # None = the task's own
    batch_tokens: int | None = None  # padded tokens in one forward pass; None = the task's own


class Task(Protocol):
    """A task that was opened: its items are read and known to be good."""

    @property
    def name(self) -> str:
        """As `TaskResult.task` has it."""

    def run(self, model: LoadedModel) -> TaskResult:
        """Runs a model on all items. Raises UserError where that is impossible with this model."""


def spread(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    """`limit` of the items, evenly spread over their order, always the same ones; all where there are no more."""
    if limit is None or limit >= len(items):
        return items
    return [items[(2 * i + 1) * len(items) // (2 * limit)] for i in range(limit)]
