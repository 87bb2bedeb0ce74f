"""What one model did on one task, item by item, and how two models differ on the same items."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

LOSSES = ("bits_per_byte", "loss")  # the metrics that are no shares, and better the lower


class Difference(NamedTuple):
    """Of two models on the same items, in the units of the score."""

    value: float
    stderr: float

    @property
    def is_clear(self) -> bool:
        """Whether it is larger than two standard errors."""
        return abs(self.value) > 2 * self.stderr


@dataclass(frozen=True)
class TaskResult:
    """What one model did on one task.

    Attributes:
      task: its name, such as "arc_easy".
      scores: metric -> (N,) float64, one per item, in [0, 1]; the same items in the same order for every model.
      chance: metric -> what guessing scores; a metric without such a level is absent.
      main: the metric for tables, plots and best-so-far.
      groups: (N,) subject, family or language of each item, "" where there is none.
      records: (N,) a JSON object per item: `id`, `prompt` (a string), `reply` (what the model answered or chose, a
        string), `gold` (a string or JSON), `scores`, and what else the task knows.
      details: JSON. `value` and `stderr`, where given, are those of the main metric: a summary that is no plain mean.
        `of` is the number of items that --limit chose from. `notes` are sentences to be shown under the table.
      weights: metric -> (N,) positive, where it is sum(weights * scores) and not their mean, but for a constant that
        `value` knows; the groups are then the strata of its standard error.
    """

    task: str
    scores: Mapping[str, np.ndarray]
    chance: Mapping[str, float]
    main: str
    groups: Sequence[str]
    records: Sequence[Mapping[str, Any]]
    details: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        arrays = (*self.scores.values(), *self.weights.values())
        lengths = {len(self.records), len(self.groups), *map(len, arrays)}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError(f"scores, groups and records of {self.task} have {sorted(lengths)} items")
        if self.main not in self.scores:
            raise ValueError(f"{self.main} is no score of {self.task}: {', '.join(self.scores)}")

    def __len__(self) -> int:
        return len(self.records)

    def mean(self, metric: str = "") -> float:
        """Of the main metric, if none is named: what tables show."""
        metric = metric or self.main
        if metric == self.main and "value" in self.details:
            return float(self.details["value"])
        if metric in self.weights:
            return float(self.weights[metric] @ self.scores[metric])
        return float(np.mean(self.scores[metric]))

    def stderr(self, metric: str = "") -> float:
        """Standard error of `mean`: how far it would be off on another draw of items; NaN of a single item."""
        metric = metric or self.main
        if metric == self.main and "stderr" in self.details:
            return float(self.details["stderr"])
        return self._error(metric, self.scores[metric], standard_error)

    def difference(self, other: TaskResult, metric: str = "") -> Difference:
        """Of a metric (the main one, if none is named), this model's minus the other's, paired by item.

        The standard error is that of the mean of the items' differences, sd / sqrt(N): what is hard for both models
        does not blur it.

        Raises:
          ValueError: other items, or another metric.
        """
        metric = metric or self.main
        if not self._shares_items(other, metric):
            raise ValueError(f"{self.task} and {other.task} are not {metric} of the same items")
        items = self.scores[metric] - other.scores[metric]
        return Difference(self.mean(metric) - other.mean(metric), self._error(metric, items, _sample_error))

    def _shares_items(self, other: TaskResult, metric: str) -> bool:
        def items(result: TaskResult) -> tuple[Any, ...]:
            weights = result.weights[metric].tolist() if metric in result.weights else None
            ids = [record.get("id") for record in result.records]
            return result.task, list(result.groups), ids, weights

        return metric in self.scores.keys() & other.scores.keys() and items(self) == items(other)

    def _error(self, metric: str, values: np.ndarray, of_mean: Callable[[np.ndarray], float]) -> float:
        """Standard error of `values` (N,) taken together as the metric's scores are.

        Of a weighted sum: the root of sum_g n/(n-1) sum_i w_i^2 (x_i - mean_g)^2, over the n items i of each group g.
        """
        if metric not in self.weights:
            return of_mean(values)
        variance, groups = 0.0, np.array(self.groups)
        for group in dict.fromkeys(self.groups):
            w, x = self.weights[metric][groups == group], values[groups == group]
            if len(x) < 2:
                return math.nan
            variance += len(x) / (len(x) - 1) * float(np.sum((w * (x - np.average(x, weights=w))) ** 2))
        return math.sqrt(variance)

    def by_group(self) -> dict[str, tuple[float, float, int]]:
        """Group -> mean of the main metric's scores, its standard error, items; in order of first occurrence."""
        values, groups = self.scores[self.main], np.array(self.groups)
        parts = {group: values[groups == group] for group in dict.fromkeys(self.groups)}
        return {group: (float(part.mean()), standard_error(part), len(part)) for group, part in parts.items()}

    def summary(self) -> dict[str, Any]:
        """All but the items, as JSON: metrics with value, stderr and chance; groups, if any; details."""
        metrics = {
            name: {"value": self.mean(name), "stderr": _json(self.stderr(name)), "chance": self.chance.get(name)}
            for name in self.scores
        }
        groups = {
            group: {"value": value, "stderr": _json(error), "items": n}
            for group, (value, error, n) in self.by_group().items()
            if group
        }
        return {
            "task": self.task,
            "items": len(self),
            "main": self.main,
            "metrics": metrics,
            "groups": groups,
            "details": dict(self.details),
        }


def standard_error(scores: np.ndarray) -> float:
    """Of the mean of (N,) scores: sqrt(p (1 - p) / N) where they are all 0 or 1, else sample sd / sqrt(N)."""
    if np.isin(scores, (0, 1)).all():
        p = float(np.mean(scores))
        return math.sqrt(p * (1 - p) / len(scores))
    return _sample_error(scores)


def _sample_error(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _json(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
