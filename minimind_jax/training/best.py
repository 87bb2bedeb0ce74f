"""The best evaluation of a run so far, by the metric that `best` names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from minimind_jax.config import Config, higher_is_better
from minimind_jax.errors import UserError


class Best(NamedTuple):
    metric: str
    step: int
    value: float


class BestSoFar:
    """Follows one metric through the lines of metrics.jsonl, of this session and of those before it.

    Attributes:
      metric: "" where nothing is measured.
      best: None before the first measurement.
    """

    def __init__(self, metric: str, lines: Iterable[Mapping[str, Any]] = ()):
        self.metric = metric
        self.best: Best | None = None
        for line in lines:
            self.update(line["step"], line)

    def update(self, step: int, values: Mapping[str, Any]) -> bool:
        """Whether these values are the best so far: strictly better than all before. None and NaN are none."""
        value = values.get(self.metric)
        if value is None or not math.isfinite(value):
            return False
        if self.best:
            gain = value - self.best.value if higher_is_better(self.metric) else self.best.value - value
            if not gain > 0:
                return False
        self.best = Best(self.metric, step, value)
        return True


def check_best(config: Config, has_validation: bool) -> None:
    """Raises UserError where `best` or `keep_best` needs a measurement that the run does not make."""
    if config.best.startswith("val_") and not has_validation:
        raise UserError(
            f"best={config.best} needs held-out data: set data.val_path or data.val_fraction, or name one of eval_tasks"
        )
    if config.keep_best and not best_metric(config, has_validation):
        raise UserError("keep_best=True finds nothing measured: set data.val_path, data.val_fraction or eval_tasks")


def best_metric(config: Config, has_validation: bool) -> str:
    """`best`, or what stands for it where it is empty: val_loss, without held-out data the first task."""
    if config.best or not config.eval_every:
        return config.best
    if has_validation:
        return "val_loss"
    return f"task/{config.eval_task_names[0]}" if config.eval_task_specs else ""
