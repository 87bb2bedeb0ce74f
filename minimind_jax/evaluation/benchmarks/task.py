"""Multiple choice by log-likelihood: the choice that the model finds most likely after the prompt is its answer.

acc takes the summed log-probability of each choice, acc_norm divides it by the choice's length in characters, so that
long choices are not at a disadvantage (lm-eval's two metrics; of equals the first counts).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minimind_jax.data.progress import Progress
from minimind_jax.evaluation.benchmarks.exams import EXAMS, examples_beside, read_exam, read_examples
from minimind_jax.evaluation.benchmarks.forms import FORMS
from minimind_jax.evaluation.benchmarks.item import LETTERS, ChoiceItem
from minimind_jax.evaluation.benchmarks.prompts import Prompted, encode
from minimind_jax.evaluation.benchmarks.records import read_items, training_file
from minimind_jax.evaluation.benchmarks.shots import Shots, drawn, first_of_subject, no_shots
from minimind_jax.evaluation.likelihood import ChoiceScores, score_choices
from minimind_jax.evaluation.result import TaskResult
from minimind_jax.evaluation.task import TaskOptions, spread
from minimind_jax.inference.devices import local_mesh
from minimind_jax.workdir import LoadedModel


@dataclass(frozen=True)
class ChoiceTask:
    """Questions with what precedes each, ready for any model.

    Attributes:
      total: how many questions there were before --limit.
      main: the metric for tables.
      chat: whether they go through the chat template.
      shots: examples before each; they come from `source`.
    """

    name: str
    questions: Sequence[Prompted]
    total: int
    main: str
    chat: bool
    shots: int
    source: str

    def __len__(self) -> int:
        return len(self.questions)

    def run(self, model: LoadedModel) -> TaskResult:
        """In float32 on all devices of this process. Raises UserError: no chat template, or as `score_choices`."""
        tokens = encode(model.tokenizer, self.questions, self.chat)
        progress = Progress(self.name, len(self))
        scored = score_choices(model.config, model.params, tokens, mesh=local_mesh(), progress=progress.update)
        progress.close()
        return self.judge(scored)

    def judge(self, scored: Sequence[ChoiceScores]) -> TaskResult:
        """The result by the log-likelihoods of each question's choices."""
        records, chosen = [], []
        for question, scores in zip(self.questions, scored, strict=True):
            item = question.item
            by_sum = int(np.argmax(scores.logprobs))
            by_mean = int(np.argmax(scores.logprobs / [len(choice) for choice in item.choices]))
            chosen.append(by_sum)
            right = {"acc": float(by_sum == item.gold), "acc_norm": float(by_mean == item.gold)}
            record: dict[str, Any] = {
                "id": item.id,
                "prompt": item.prompt,
                "reply": item.choices[by_sum if self.main == "acc" else by_mean],
                "gold": item.choices[item.gold],
                "scores": right,
                "choices": list(item.choices),
                "logprobs": scores.logprobs.tolist(),
            }
            records.append(record | ({"truncated": True} if scores.truncated else {}))
        items = [question.item for question in self.questions]
        chance = float(np.mean([1 / len(item.choices) for item in items]))
        details = {
            "of": self.total,
            "chat": self.chat,
            "shots": self.shots,
            **({"shots_from": self.source} if self.shots else {}),
            "chosen": _shares(chosen),
            "gold": _shares([item.gold for item in items]),
            "truncated": sum(scores.truncated for scores in scored),
        }
        metrics = ("acc", "acc_norm")
        return TaskResult(
            task=self.name,
            scores={metric: np.array([record["scores"][metric] for record in records]) for metric in metrics},
            chance=dict.fromkeys(metrics, chance),
            main=self.main,
            groups=[item.group for item in items],
            records=records,
            details=details,
        )


def _shares(numbers: Sequence[int]) -> dict[str, float]:
    """Share of each letter among choices by number."""
    counts = Counter(numbers)
    return {LETTERS[i]: counts[i] / len(numbers) for i in range(max(counts) + 1)}


def open_choices(name: str, options: TaskOptions) -> ChoiceTask:
    """The task `name`, one of FORMS or of EXAMS, with its files read.

    Raises:
      UserError: what is wrong with the files, or with --shots.
    """
    assert options.path is not None
    if name in EXAMS:
        items = read_exam(options.path, EXAMS[name])
        descriptions, main = [EXAMS[name].describe(item.group) for item in items], "acc"
    else:
        items = read_items(options.path, FORMS[name])
        descriptions, main = [""] * len(items), FORMS[name].main
    shots = _shots(name, options.path, items, options) if options.shots else no_shots(items)
    questions = [Prompted(*parts) for parts in zip(items, descriptions, shots.examples, strict=True)]
    some = spread(questions, options.limit)
    return ChoiceTask(name, some, len(items), main, bool(options.chat), options.shots, shots.source)


def _shots(name: str, path: Path, items: Sequence[ChoiceItem], options: TaskOptions) -> Shots:
    beside = examples_beside(path) if name in EXAMS else training_file(path)
    source = options.shots_from or beside or path
    others = source.resolve() != path.resolve()
    if name in EXAMS:
        return first_of_subject(items, options.shots, path, read_examples(source) if others else None, source)
    return drawn(items, options.shots, path, read_items(source, FORMS[name]) if others else None, source)
