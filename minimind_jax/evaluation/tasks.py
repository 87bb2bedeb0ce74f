"""The tasks by name. A spec is NAME, or NAME:PATH with the file or directory that it reads."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind_jax.errors import UserError
from minimind_jax.evaluation.benchmarks import BENCHMARKS, open_choices
from minimind_jax.evaluation.exact_answers import open_exact, open_gsm8k
from minimind_jax.evaluation.loss_task import open_loss
from minimind_jax.evaluation.mini_core import open_mini_core
from minimind_jax.evaluation.questions_task import open_questions
from minimind_jax.evaluation.task import Task, TaskOptions
from minimind_jax.evaluation.tool_calls import open_tool_calls


@dataclass(frozen=True)
class TaskKind:
    """What a name stands for.

    Attributes:
      open: makes the task; reads and checks its files. Raises UserError.
      what: a few words for the user.
      reads: what its path names, such as "a GSM8K jsonl file"; "" for a task that needs no file.
      takes: fields of `TaskOptions` that it heeds, besides `path` and `limit`.
    """

    open: Callable[[TaskOptions], Task]
    what: str
    reads: str
    takes: frozenset[str] = frozenset()


_SHOTS = frozenset({"shots", "shots_from"})
_ASKING = frozenset({"samples", "temperature", "pass_at", "max_new_tokens", "chat"})

TASKS: dict[str, TaskKind] = {
    "loss": TaskKind(
        open_loss,
        "nats per target token and bits per byte",
        "a file of texts or conversations",
        frozenset({"batch_tokens"}),
    ),
    "questions": TaskKind(
        open_questions,
        "exact answers to generated questions",
        "a questions.jsonl as `python -m minimind_jax.data.generate` writes it",
        frozenset({"chat"}),
    ),
    "gsm8k": TaskKind(
        open_gsm8k,
        "grade-school maths, the number at the end",
        "a GSM8K jsonl file (question, answer ending in #### number)",
        _ASKING | _SHOTS,
    ),
    "exact": TaskKind(
        open_exact, "questions with one right answer", "a jsonl file of questions with an `answer`", _ASKING | _SHOTS
    ),
    "toolcall": TaskKind(
        open_tool_calls, "calls of functions, scored per call", "a jsonl file of conversations with tools", _ASKING
    ),
    "mini_core": TaskKind(open_mini_core, "bilingual mean over generated tasks, for small models", ""),
}
TASKS |= {
    name: TaskKind(functools.partial(open_choices, name), what, reads, _SHOTS | {"chat"})
    for name, (what, reads) in BENCHMARKS.items()
}

_FLAGS = {
    "shots": "--shots",
    "shots_from": "--shots-from",
    "chat": "--chat or --plain",
    "samples": "--samples",
    "temperature": "--temperature",
    "pass_at": "--k",
    "max_new_tokens": "--max-new-tokens",
    "batch_tokens": "--batch-tokens",
}


def open_task(spec: str, options: TaskOptions) -> Task:
    """The task that a spec names, its files read and checked.

    Args:
      options: `path` is used where the spec has none.

    Raises:
      UserError: no such task, a path that is missing or too much, an option that the task does not heed or a value that
        makes no sense, or what is wrong with its files.
    """
    return open_tasks([spec], options)[0]


def open_tasks(specs: Sequence[str], options: TaskOptions) -> list[Task]:
    """The tasks of all specs; each gets the options that it heeds. Raises as `open_task`; no task heeds an option."""
    kinds = {spec: _kind(spec) for spec in specs}
    _check(options)
    for field, flag in _FLAGS.items():
        if _is_set(options, field) and not any(field in kind.takes for kind in kinds.values()):
            names = " and ".join(f"--task {spec.partition(':')[0]}" for spec in specs)
            raise UserError(f"{flag} means nothing to {names}: leave it away")
    return [kind.open(_options_of(spec, kind, options)) for spec, kind in kinds.items()]


def _kind(spec: str) -> TaskKind:
    name = spec.partition(":")[0]
    if name not in TASKS:
        raise UserError(f"--task {spec}: there is no task {name!r}, there are {', '.join(TASKS)}")
    return TASKS[name]


def _options_of(spec: str, kind: TaskKind, options: TaskOptions) -> TaskOptions:
    name, _, own_path = spec.partition(":")
    path = Path(own_path) if own_path else options.path
    if kind.reads and path is None:
        raise UserError(f"--task {name} reads {kind.reads}: write --task {name}:PATH, or add --data PATH")
    if not kind.reads and path is not None:
        raise UserError(f"--task {name} needs no file: leave {path} away")
    unheeded: dict[str, Any] = {
        field.name: field.default
        for field in dataclasses.fields(TaskOptions)
        if field.name in _FLAGS and field.name not in kind.takes
    }
    return dataclasses.replace(options, path=path, **unheeded)


def _is_set(options: TaskOptions, field: str) -> bool:
    return bool(getattr(options, field) != getattr(TaskOptions(), field))


def _check(options: TaskOptions) -> None:
    """Raises UserError for values that make no sense, whatever the task."""
    for flag, value, least in (
        ("--limit", options.limit, 1),
        ("--shots", options.shots, 0),
        ("--samples", options.samples, 1),
        ("--max-new-tokens", options.max_new_tokens, 1),
        ("--batch-tokens", options.batch_tokens, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"{flag}={value} must be at least {least}")
    if options.samples > 1 and options.temperature == 0:
        raise UserError(f"--samples {options.samples} of greedy decoding are all alike: add --temperature, such as 0.8")
    for k in options.pass_at:
        if not 1 <= k <= options.samples:
            raise UserError(f"--k {k} is not from 1 to --samples {options.samples}: draw more samples")
    if options.pass_at and options.samples == 1:
        raise UserError("--k belongs to --samples of more than 1: add that, or leave --k away")
    if options.shots_from is not None and not options.shots:
        raise UserError("--shots-from belongs to --shots: add the number of examples")
