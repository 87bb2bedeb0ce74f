"""metrics.jsonl, the record of a run, and its trackers: every logged step once, also across restarts."""

from __future__ import annotations

import json
import os
from typing import Any

from minimind_jax.training.trackers import Trackers
from minimind_jax.workdir import Workdir, read_metrics, write_atomically


class MetricsLog:
    """Appends one JSON object a logged step.

    Lines up to step s are on disk before checkpoint s is saved (`sync`), and a run that resumes
    at s cuts all later ones, so the file has neither gap nor repeat.
    """

    def __init__(self, workdir: Workdir, resumed_at: int, trackers: Trackers):
        kept = "".join(json.dumps(line) + "\n" for line in read_metrics(workdir) if line["step"] <= resumed_at)
        write_atomically(workdir.metrics, kept)
        self._file = open(workdir.metrics, "a", encoding="utf-8")  # noqa: SIM115 - closed in close()
        self._trackers = trackers

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        scalars = {key: value for key, value in line.items() if key not in ("step", "best") and value is not None}
        self._trackers.scalars(scalars, line["step"])

    def write_text(self, name: str, text: str, step: int) -> None:
        self._trackers.text(name, text, step)

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.sync()
        self._file.close()
        self._trackers.close()
