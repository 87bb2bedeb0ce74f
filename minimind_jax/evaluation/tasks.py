"""The tasks by name. A spec is NAME, or NAME:PATH with the file or directory that it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minimind_jax.errors import UserError
from minimind_jax.evaluation.exact_answers import open_exact, open_gsm8k
from minimind_jax.evaluation.task import Task, TaskOptions
from minimind_jax.evaluation.tool_calls import open_tool_calls


@dataclass(frozen=True)
class TaskKind:
    """What a name stands for.

    Attributes:
      open: makes the task; reads and checks its files. Raises UserError.
      what: one line for the user.
      reads: what its path names, such as "a GSM8K jsonl file"; "" for a task that needs no file.
      takes: fields of `TaskOptions` that it heeds, besides `path` and `limit`.
    """

    open: Callable[[TaskOptions], Task]
    what: str
    reads: str
    takes: frozenset[str] = frozenset()


_ASKING = frozenset({"samples", "temperature", "pass_at", "max_new_tokens", "chat"})

TASKS: dict[str, TaskKind] = {
    "gsm8k": TaskKind(
        open_gsm8k,
        "grade-school maths: the number at the end",
        "a GSM8K jsonl file (question, answer ending in #### number)",
        _ASKING | {"shots", "shots_from"},
    ),
    "exact": TaskKind(
        open_exact,
        "questions with one right answer",
        "a jsonl file of questions with an `answer`",
        _ASKING | {"shots", "shots_from"},
    ),
    "toolcall": TaskKind(
        open_tool_calls, "calls of functions, scored per call", "a jsonl file of conversations with tools", _ASKING
    ),
}

_FLAGS = {
    "shots": "--shots",
    "shots_from": "--shots-from",
    "chat": "--chat or --plain",
    "samples": "--samples",
    "temperature": "--temperature",
    "pass_at": "--k",
    "max_new_tokens": "--max-new-tokens",
}


def open_task(spec: str, options: TaskOptions) -> Task:
    """The task that a spec names, its files read and checked.

    Args:
      options: `path` is used where the spec has none.

    Raises:
      UserError: no such task, a path that is missing or too much, an option that the task does not heed, or what is
        wrong with its files.
    """
    name, _, path = spec.partition(":")
    if name not in TASKS:
        raise UserError(f"--task {spec}: there is no task {name!r}, there are {', '.join(sorted(TASKS))}")
    kind = TASKS[name]
    if path:
        options = dataclasses.replace(options, path=Path(path))
    if kind.reads and options.path is None:
        raise UserError(f"--task {name} reads {kind.reads}: write --task {name}:PATH")
    if not kind.reads and options.path is not None:
        raise UserError(f"--task {name} needs no file: leave {options.path} away")
    refuse_others(f"--task {name}", options, kind.takes)
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit {options.limit} must be at least 1")
    return kind.open(options)


def refuse_others(task: str, options: TaskOptions, takes: frozenset[str]) -> None:
    """Raises UserError for an option that is set and means nothing to the task."""
    for field in dataclasses.fields(TaskOptions):
        if field.name in _FLAGS and field.name not in takes and getattr(options, field.name) != field.default:
            raise UserError(f"{_FLAGS[field.name]} means nothing to {task}: leave it away")
