"""Trackers beside metrics.jsonl: TensorBoard, Weights & Biases, SwanLab. Only those that `log_to` names are imported.

Each has a module here of its name with

    check()         raises UserError where the tracker would ask for a login
    start(run)      a `Tracker` that begins or continues the run

Their files lie below WORKDIR/NAME.
"""

from __future__ import annotations

import errno
import importlib
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from minimind_jax.errors import UserError, first_line
from minimind_jax.workdir import Workdir, read_metrics, write_atomically

PROJECT = "minimind-jax"


class Tracker(Protocol):
    """Where numbers and texts of a run go. Steps never decrease."""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...

    def text(self, tag: str, text: str, step: int) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run."""

    directory: Path  # for its files
    resumed_at: int  # step of the checkpoint that training goes on from, 0 for a new run
    name: str
    config: dict[str, Any]

    @property
    def has_id(self) -> bool:
        return self._id_file.exists()

    @property
    def run_id(self) -> str:
        """Kept in `directory`: the same workdir is the same run, a new one at the same path another."""
        if not self.has_id:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomically(self._id_file, secrets.token_hex(8))
        return self._id_file.read_text("utf-8")

    @property
    def _id_file(self) -> Path:
        return self.directory / "run_id"


class Trackers:
    """All trackers of a run as one. A tracker that fails is left out from then on: it must not end the training.

    Args:
      trackers: by name.
      known: the last step that a tracker was handed before this process, by name; it is not told those again.
      warn: shows one line.
    """

    def __init__(self, trackers: dict[str, Tracker], known: dict[str, int], warn: Callable[[str], None]):
        self._trackers, self._known, self._warn = trackers, known, warn

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._each(lambda tracker: tracker.scalars(values, step), step)

    def text(self, tag: str, text: str, step: int) -> None:
        self._each(lambda tracker: tracker.text(tag, text, step), step)

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, call: Callable[[Tracker], None], step: int | None = None) -> None:
        for name, tracker in list(self._trackers.items()):
            if step is not None and step <= self._known[name]:
                continue
            try:
                call(tracker)
            except Exception as e:  # whatever these libraries raise
                del self._trackers[name]
                self._warn(f"warning: {name} failed ({first_line(e)}): no more is written to it, metrics.jsonl goes on")


def check_trackers(names: Iterable[str]) -> None:
    """Raises UserError for a tracker whose package is missing or that would ask for a login."""
    for name in names:
        _module(name).check()


def open_trackers(
    names: Iterable[str], workdir: Workdir, resumed_at: int, config: dict[str, Any], warn: Callable[[str], None]
) -> Trackers:
    """Begins or continues the workdir's run in each tracker; before `MetricsLog` cuts the lines that come again.

    Raises UserError for a tracker that cannot start.
    """
    trackers, known = {}, {}
    last_line = max((line["step"] for line in read_metrics(workdir)), default=0)
    for name in names:
        run = TrackedRun(workdir.tracker(name), resumed_at, workdir.path.name, config)
        known[name] = resumed_at
        if run.has_id and last_line > resumed_at:
            known[name] = last_line
            warn(f"warning: {name} knows this run up to step {last_line} and is told later steps only")
        try:
            trackers[name] = _module(name).start(run)
        except Exception as e:  # whatever these libraries raise
            if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            offline = f", work offline with {name.upper()}_MODE=offline" if name != "tensorboard" else ""
            raise UserError(
                f"log_to names {name}, which cannot start ({first_line(e)}): mend that{offline}, or leave it out of "
                "log_to"
            ) from None
    return Trackers(trackers, known, warn)


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except Exception as e:  # some raise more than ImportError where versions do not fit
        raise UserError(
            f"log_to names {name}, which cannot be imported ({first_line(e)}): pip install -U {name}, "
            "or leave it out of log_to"
        ) from None
