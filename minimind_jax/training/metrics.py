"""The record of a run, metrics.jsonl and samples.jsonl, and its trackers: every step once, also across restarts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from minimind_jax.training.trackers import Trackers
from minimind_jax.workdir import Workdir, read_steps, write_atomically


class MetricsLog:
    """Appends one JSON object a logged step, and one a sample.

    Lines up to step s are on disk before checkpoint s is saved (`sync`), and a run that resumes
    at s cuts all later ones, so the files have neither gap nor repeat.
    """

    def __init__(self, workdir: Workdir, resumed_at: int, trackers: Trackers):
        self._metrics, self._samples = (_Lines(path, resumed_at) for path in (workdir.metrics, workdir.samples))
        self._workdir, self._trackers = workdir, trackers

    def write_before(self, measures: dict[str, float]) -> None:
        """What was measured before the first step: the rest of the report are the lines that follow."""
        write_atomically(self._workdir.report, json.dumps({"before": measures}, indent=2) + "\n")

    def write(self, line: dict[str, Any]) -> None:
        self._metrics.append(line)
        scalars = {key: value for key, value in line.items() if key not in ("step", "best") and value is not None}
        self._trackers.scalars(scalars, line["step"])

    def write_sample(self, prompt: str, text: str, step: int) -> None:
        self._samples.append({"step": step, "prompt": prompt, "text": text})
        self._trackers.text(f"sample/{prompt}", text, step)

    def sync(self) -> None:
        self._metrics.sync()
        self._samples.sync()

    def close(self) -> None:
        self._metrics.close()
        self._samples.close()
        self._trackers.close()


class _Lines:
    """A file of JSON lines, cut behind the step that a run resumes at."""

    def __init__(self, path: Path, resumed_at: int):
        kept = "".join(json.dumps(line) + "\n" for line in read_steps(path) if line["step"] <= resumed_at)
        write_atomically(path, kept)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed in close()

    def append(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.sync()
        self._file.close()
