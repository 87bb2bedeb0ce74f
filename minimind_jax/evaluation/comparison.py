"""Several models on several tasks: what is written to disk, and names short enough for a table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind_jax.errors import UserError
from minimind_jax.evaluation.result import Difference, TaskResult
from minimind_jax.workdir import LoadedModel, short_names


@dataclass(frozen=True)
class ModelInfo:
    """Which model it was."""

    name: str  # short, unique among those compared
    path: str
    step: int
    parameters: int
    yarn: str = ""  # "FACTOR x TOKENS", if it was stretched by hand


@dataclass(frozen=True)
class Comparison:
    """The results of all models on all tasks.

    Attributes:
      tasks: their labels, unique; one row of results each.
      results: one row a task, one column a model.
    """

    models: Sequence[ModelInfo]
    tasks: Sequence[str]
    results: Sequence[Sequence[TaskResult]]

    def difference(self, task: int, model: int, metric: str = "") -> Difference | None:
        """Of a model to the first one; None where they were not measured on the same items."""
        row = self.results[task]
        try:
            return row[model].difference(row[0], metric)
        except ValueError:
            return None

    def to_dict(self) -> dict[str, Any]:
        """All but the items, as docs/evaluation.md describes it."""
        tasks = []
        for number, (label, row) in enumerate(zip(self.tasks, self.results, strict=True)):
            results = [
                {"model": model.name} | _without_task(r.summary()) for model, r in zip(self.models, row, strict=True)
            ]
            differences = [
                {"model": model.name, "to": self.models[0].name, "metric": metric}
                | _difference(self.difference(number, i, metric))
                for i, model in enumerate(self.models)
                if i
                for metric in row[0].scores
            ]
            tasks.append({"task": label, "main": row[0].main, "results": results, "differences": differences})
        return {"models": [vars(model) for model in self.models], "tasks": tasks}

    def write_answers(self, directory: Path) -> list[Path]:
        """Every item's record, as jsonl: TASK.MODEL.jsonl. Raises UserError where that cannot be written."""
        written = []
        try:
            directory.mkdir(exist_ok=True)
            for label, row in zip(self.tasks, self.results, strict=True):
                for model, result in zip(self.models, row, strict=True):
                    path = directory / f"{_file_name(label)}.{_file_name(model.name)}.jsonl"
                    with open(path, "w", encoding="utf-8") as file:
                        for record in result.records:
                            file.write(json.dumps(record, ensure_ascii=False) + "\n")
                    written.append(path)
        except OSError as e:
            if not e.strerror or e.filename is None:
                raise
            raise UserError(f"--answers {directory}: {e.filename} cannot be written: {e.strerror}") from None
        return written


def model_info(name: str, path: str, model: LoadedModel, yarn: str = "") -> ModelInfo:
    return ModelInfo(name, path, model.step, model.n_params, yarn)


def task_labels(specs: Sequence[str]) -> list[str]:
    """The tasks' names, with their files' where one name stands for several."""
    names = [spec.partition(":")[0] for spec in specs]
    files = short_names([spec.partition(":")[2] for spec in specs])
    return [
        name if names.count(name) == 1 else f"{name}:{file}" if file else name
        for name, file in zip(names, files, strict=True)
    ]


def _without_task(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key not in ("task", "main")}


def _difference(found: Difference | None) -> dict[str, Any]:
    if found is None:
        return {"value": None, "stderr": None, "clear": None}
    finite = math.isfinite(found.stderr)
    return {"value": found.value, "stderr": found.stderr if finite else None, "clear": found.is_clear}


def _file_name(name: str) -> str:
    return name.replace("/", "_").replace(":", "_")
