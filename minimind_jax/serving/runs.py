"""Training runs for the page to show: finds workdirs and reads what they log. Writes, creates and locks nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from minimind_jax.errors import UserError
from minimind_jax.serving.run_files import held_locks, is_locked, last_step, modified_at, read_lines, read_object
from minimind_jax.workdir import Workdir, count_parameters

MAX_DEPTH = 3  # directories below the given one
MAX_LINES = 20_000  # of metrics in one answer
MAX_SAMPLES = 2_000
_LIVE_SECONDS = 60.0
_SKIP = {"checkpoints", "damaged", "tokenizer"}


class RunsDirectory:
    """The workdirs at most three levels below a directory, or the directory itself where it is one.

    Symbolic links are not followed: none leads out of it.

    Raises UserError if it is no directory.
    """

    def __init__(self, path: str | Path) -> None:
        if not Path(path).is_dir():
            raise UserError(f"--runs {path} is not a directory: give the one that holds the workdirs, such as out")
        self._root = Path(path).resolve()

    def list(self) -> list[dict[str, Any]]:
        """One object a run, those at work first and then the latest: id (path below the directory), stage, step,
        total_steps, live, modified (Unix seconds), parameters, and `problem` where something cannot be read."""
        locks = held_locks()
        runs = [self._about(name, path, locks) for name, path in self._workdirs()]
        return sorted(runs, key=lambda run: (not run["live"], -run["modified"], run["id"]))

    def read(self, id: str, after: int) -> dict[str, Any]:
        """What a run has logged after a step (all of it after -1).

        Returns:
          about: as in `list`; config: config.json;
          metrics: its lines; of more than 20,000 an even choice, and every one with held-out measures;
          thinned: {"of", "kept"} if so, else null; samples: {"step", "prompt", "text"};
          report: {"before", "after", "step"}: what was measured before the first step, and the same in the last of
            these lines that has it; or null;
          version: changes when the run goes back to a checkpoint: then ask for all again;
          problem: what is damaged, or null.

        Raises KeyError if there is no such run.
        """
        path = self._find(id)
        about = self._about(id, path, held_locks())
        workdir = Workdir(path)
        config, _ = read_object(workdir.config)
        metrics = read_lines(workdir.metrics, after)
        samples = read_lines(workdir.samples, after)
        kept = _thin(metrics.lines)
        problems = [text for text in (about["problem"], metrics.problem, samples.problem) if text]
        return {
            "about": about,
            "config": config,
            "metrics": kept,
            "thinned": {"of": len(metrics.lines), "kept": len(kept)} if len(kept) < len(metrics.lines) else None,
            "samples": [line for line in samples.lines if _is_sample(line)][-MAX_SAMPLES:],
            "report": _report(workdir, metrics.lines),
            "version": metrics.version,
            "problem": "; ".join(problems) or None,
        }

    def _workdirs(self) -> Iterator[tuple[str, Path]]:
        if _is_run(self._root):
            yield self._root.name, self._root
            return
        waiting = [(self._root, 0)]
        while waiting:
            directory, depth = waiting.pop()
            with suppress(OSError), os.scandir(directory) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name in _SKIP or not entry.is_dir(follow_symlinks=False):
                        continue
                    path = Path(entry.path)
                    if _is_run(path):
                        yield path.relative_to(self._root).as_posix(), path
                    elif depth + 1 < MAX_DEPTH:
                        waiting.append((path, depth + 1))

    def _find(self, id: str) -> Path:
        # Looked up among what was found, so that no spelling of `id` reaches the file system.
        return dict(self._workdirs())[id]

    def _about(self, name: str, path: Path, locks: set[str]) -> dict[str, Any]:
        workdir = Workdir(path)
        config, problem = read_object(workdir.config)
        step = last_step(workdir.metrics)
        total = config.get("total_steps")
        total = total if isinstance(total, int) else None
        modified = max(modified_at(workdir.metrics), modified_at(workdir.config))
        at_work = is_locked(workdir.lock, locks) or time.time() - modified < _LIVE_SECONDS
        return {
            "id": name,
            "stage": str(config.get("stage", "")),
            "step": step,
            "total_steps": total,
            "live": at_work and total is not None and step < total,
            "modified": modified,
            "parameters": count_parameters(config.get("model")),
            "problem": problem,
        }


def _is_run(path: Path) -> bool:
    config, problem = read_object(path / "config.json")
    return "format_version" in config or (problem is not None and (path / "metrics.jsonl").is_file())


def _is_sample(line: dict[str, Any]) -> bool:
    return isinstance(line.get("prompt"), str) and isinstance(line.get("text"), str)


def _thin(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most MAX_LINES of them: evenly chosen, with those that hold held-out measures before all others."""
    if len(lines) <= MAX_LINES:
        return lines
    measured = [i for i, line in enumerate(lines) if any(key.startswith(("val_", "task/")) for key in line)]
    measured = measured[:: -(-len(measured) // (MAX_LINES // 2))] if measured else []
    room = MAX_LINES - len(measured) - 1
    chosen = {*measured, *(i * (len(lines) - 1) // room for i in range(room + 1))}
    return [lines[i] for i in sorted(chosen)]


def _report(workdir: Workdir, lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What was measured before the first step, beside the last of the lines that has the same measures."""
    before = read_object(workdir.report)[0].get("before")
    if not isinstance(before, dict):
        return None
    for line in reversed(lines):
        after = {key: line[key] for key in before if key in line}
        if after:
            return {"before": before, "after": after, "step": line["step"]}
    return {"before": before, "after": {}, "step": None}
