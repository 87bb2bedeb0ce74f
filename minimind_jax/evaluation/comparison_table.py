"""A `Comparison` as text for a terminal: models side by side, differences, groups, a few answers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np

from minimind_jax.evaluation.comparison import Comparison
from minimind_jax.evaluation.result import LOSSES, Difference, TaskResult

_N_EXAMPLES = 4  # items of a task
_SHOWN = 72  # characters of a prompt or an answer


def models_table(comparison: Comparison) -> str:
    """Which models these are."""
    rows = [["model", "from", "step", "parameters"]]
    for model in comparison.models:
        path = model.path + (f" (YaRN {model.yarn})" if model.yarn else "")
        rows.append([model.name, path, str(model.step), f"{model.parameters:,}"])
    return "\n".join(_aligned(rows, left=2))


def comparison_table(comparison: Comparison) -> str:
    """One row a metric: chance, items, value and standard error by model, differences to the first; then notes."""
    models = comparison.models
    header = ["task", "metric", "chance", "items", *(model.name for model in models)]
    header += [f"{model.name} - {models[0].name}" for model in models[1:]]
    rows, any_clear = [header], False
    for number, (label, results) in enumerate(zip(comparison.tasks, comparison.results, strict=True)):
        for metric in _metrics(results[0]):
            is_main, first = metric == results[0].main, results[0]
            chance = first.chance.get(metric)
            row = [
                label if is_main else "",
                metric,
                "-" if chance is None else _value(metric, chance),
                str(len(first)) if is_main else "",
                *(_with_error(metric, r.mean(metric), r.stderr(metric)) for r in results),
            ]
            for model in range(1, len(models)):
                found = comparison.difference(number, model, metric)
                any_clear |= found is not None and found.is_clear
                row.append(_difference(metric, found))
            rows.append(row)
    lines = _aligned(rows, left=2)
    if any_clear:
        lines.append("* differs by more than two standard errors, paired by item")
    return "\n".join([*lines, *_notes(comparison)])


def groups_table(comparison: Comparison) -> str:
    """The main metric of each task by group; "" where no task has groups."""
    rows: list[list[str]] = []
    for label, results in zip(comparison.tasks, comparison.results, strict=True):
        by_group = [result.by_group() for result in results]
        for group, (_, _, n) in by_group[0].items():
            if group:
                cells = [
                    _with_error(results[0].main, *groups[group][:2]) if group in groups else "-" for groups in by_group
                ]
                rows.append([label, group, str(n), *cells])
    if not rows:
        return ""
    return "\n".join(_aligned([["task", "group", "items", *(m.name for m in comparison.models)], *rows], left=2))


def examples(comparison: Comparison) -> str:
    """A few items of each task and what every model said to them: first those on which the models differ."""
    lines = []
    for label, results in zip(comparison.tasks, comparison.results, strict=True):
        if "reply" not in results[0].records[0] or any(len(r) != len(results[0]) for r in results):
            continue
        scores = np.array([result.scores[result.main] for result in results])  # (models, N)
        width = max(len(model.name) for model in comparison.models)
        for i in _pick(scores):
            record = results[0].records[i]
            gold = record["gold"]
            lines.append(f"{label} {record['id']}: {_clip(record['prompt'])}   [right: {_clip(_text(gold))}]")
            for model, result in zip(comparison.models, results, strict=True):
                mark = _mark(float(result.scores[result.main][i]))
                lines.append(f"    {model.name:{width}}  {mark:6} {_clip(result.records[i]['reply'])!r}")
    return "\n".join(lines)


def _metrics(result: TaskResult) -> list[str]:
    """The main one first."""
    return sorted(result.scores, key=lambda metric: metric != result.main)


def _is_share(metric: str) -> bool:
    return metric not in LOSSES


def _value(metric: str, value: float) -> str:
    return f"{100 * value:.1f} %" if _is_share(metric) else f"{value:.4f}"


def _with_error(metric: str, value: float, error: float) -> str:
    if not math.isfinite(error):
        return _value(metric, value)
    return f"{100 * value:.1f} ± {100 * error:.1f} %" if _is_share(metric) else f"{value:.4f} ± {error:.4f}"


def _difference(metric: str, found: Difference | None) -> str:
    if found is None:
        return "other items"
    mark = " *" if found.is_clear else "  "
    sign = "+" if found.value > 0 else ""
    return sign + _with_error(metric, found.value, found.stderr) + mark


def _aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Columns of one width; the first `left` ones begin, the others end alike."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [f"{c:<{w}}" if i < left else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def _notes(comparison: Comparison) -> list[str]:
    notes = []
    for label, results in zip(comparison.tasks, comparison.results, strict=True):
        if (of := results[0].details.get("of", 0)) > len(results[0]):
            notes.append(f"{label}: {len(results[0])} of {of} items, always the same ones")
        by_model = [list(result.details.get("notes", ())) for result in results]
        of_all = [note for note in by_model[0] if all(note in own for own in by_model)]
        notes += [f"{label}: {note}" for note in of_all]
        for model, own in zip(comparison.models, by_model, strict=True):
            notes += [f"{label}, {model.name}: {note}" for note in own if note not in of_all]
    return notes


def _pick(scores: np.ndarray) -> list[int]:
    """Up to _N_EXAMPLES items, spread over the file: half of them, if there are so many, divide the models."""
    differ = np.flatnonzero(scores.max(axis=0) != scores.min(axis=0))
    alike = np.flatnonzero(scores.max(axis=0) == scores.min(axis=0))
    n_differ = min(len(differ), max(_N_EXAMPLES // 2, _N_EXAMPLES - len(alike)))
    n_alike = min(len(alike), _N_EXAMPLES - n_differ)
    chosen = []
    for items, n in ((differ, n_differ), (alike, n_alike)):
        chosen += [int(items[(2 * k + 1) * len(items) // (2 * n)]) for k in range(n)]
    return sorted(chosen)


def _mark(score: float) -> str:
    return "right" if score >= 1 else "wrong" if score <= 0 else f"{score:.2f}"


def _text(gold: object) -> str:
    if isinstance(gold, list) and gold and all(isinstance(text, str) for text in gold):
        return " | ".join(gold)
    return gold if isinstance(gold, str) else json.dumps(gold, ensure_ascii=False)


def _clip(text: str) -> str:
    """One line; of a long text its end, where a question stands."""
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"...{text[-_SHOWN:]}"
