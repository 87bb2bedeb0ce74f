"""A `Comparison` as a picture: bars with standard errors, and what guessing would score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from minimind_jax.evaluation.comparison import Comparison
from minimind_jax.evaluation.result import LOSSES


def plot_comparison(comparison: Comparison, out: Path) -> None:
    """Writes a PNG: the main metric of each task, models side by side; shares and losses have axes of their own."""
    from matplotlib.figure import Figure  # takes a second, and few need it

    losses = [i for i, row in enumerate(comparison.results) if row[0].main in LOSSES]
    shares = [i for i in range(len(comparison.tasks)) if i not in losses]
    panels = [tasks for tasks in (shares, losses) if tasks]
    width = max(5.0, 1.5 + 0.35 * len(comparison.models) * len(comparison.tasks) + 0.8 * len(comparison.tasks))
    figure = Figure(figsize=(width, 4.5), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=[len(tasks) for tasks in panels])[0]
    for axis, tasks in zip(axes, panels, strict=True):
        _draw(axis, comparison, tasks, 1.0 if tasks is losses else 100.0)
        axis.set_ylabel("bits per byte (lower is better)" if tasks is losses else "%")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=min(len(comparison.models), 4)
    )
    figure.savefig(out, dpi=110, format="png")


def _draw(axis: Any, comparison: Comparison, tasks: list[int], scale: float) -> None:
    bar = 0.8 / len(comparison.models)
    at = np.arange(len(tasks))
    for i, model in enumerate(comparison.models):
        results = [comparison.results[task][i] for task in tasks]
        values = [scale * result.mean() for result in results]
        errors = [scale * np.nan_to_num(result.stderr()) for result in results]
        offset = (i - (len(comparison.models) - 1) / 2) * bar
        axis.bar(at + offset, values, 0.92 * bar, yerr=errors, capsize=3, color=f"C{i}", label=model.name)
    label = "chance"
    for x, task in zip(at, tasks, strict=True):
        result = comparison.results[task][0]
        if (chance := result.chance.get(result.main)) is not None:
            axis.hlines(
                scale * chance, x - 0.45, x + 0.45, color="black", linestyles="dashed", linewidth=1, label=label
            )
            label = ""  # once in the legend
    axis.set_xticks(at, [f"{comparison.tasks[task]}\n{comparison.results[task][0].main}" for task in tasks])
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
