"""Mini-CORE: a bilingual, centred mean over matched sets, by which models of 1 to 100 M parameters can be told apart.

Of a set with k contexts c_i and k continuations x_j (`matched_sets`), with the log-likelihoods L_ij = log p(x_j | c_i):

    D_ij = L_ij - mean_i' L_i'j                     what this context adds to what the continuation has in all of them
    a    = 1/k #{i : argmax_j D_ij = i}             accuracy; among m best, the right one counts 1/m

    mini-CORE = mean over tasks and languages of mean over sets of (a - 1/k) / (1 - 1/k)

0 is chance (exactly that of a model that does not read contexts: all its D are 0), 1 is perfect. The centred mean is
CORE's (Li et al. 2024, DataComp-LM, arXiv:2406.11794); taking a continuation's own likelihood off is like lm-eval's
acc_mutual_info. The standard error treats sets as independent draws within each task and language and the tasks as
given: sqrt(sum of their squared standard errors) over their number.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minimind_jax.data.generate import LANGUAGES
from minimind_jax.evaluation.likelihood import ChoiceTokens, score_choices
from minimind_jax.evaluation.matched_sets import MatchedSet, make_sets
from minimind_jax.evaluation.mini_core_tasks import KINDS
from minimind_jax.evaluation.result import TaskResult
from minimind_jax.evaluation.task import TaskOptions
from minimind_jax.inference.devices import local_mesh
from minimind_jax.tokenizer import Tokenizer
from minimind_jax.workdir import LoadedModel

VERSION = 1  # raised whenever the sets or the formulas change: values of two versions do not compare
_SEED = 1
_TIE = 1e-6  # nats


@functools.cache
def mini_core_sets(each: int | None = None) -> tuple[MatchedSet, ...]:
    """All sets, task by task, Chinese before English, or the first `each` of each task and language."""
    return tuple(one for kind in KINDS for language in LANGUAGES for one in make_sets(kind, language, _SEED, each))


@dataclass(frozen=True)
class MiniCore:
    """The task `mini_core`."""

    sets: Sequence[MatchedSet]
    of: int  # sets before --limit
    name: str = "mini_core"

    def __len__(self) -> int:
        return len(self.sets)

    def run(self, model: LoadedModel) -> TaskResult:
        """In float32 on all devices of this process. Raises UserError where the model's weights are broken."""
        items = [item for one in self.sets for item in choice_tokens(model.tokenizer, one)]
        scores = iter(score_choices(model.config, model.params, items, mesh=local_mesh()))
        tables = [np.array([next(scores).logprobs for _ in one.contexts]) for one in self.sets]
        return mini_core_result(self.sets, tables, self.of)


def open_mini_core(options: TaskOptions) -> MiniCore:
    """`options.limit` sets, as many of each task and language as go: at least two, for their standard error."""
    of = len(LANGUAGES) * sum(kind.sets for kind in KINDS)
    if options.limit is None or options.limit >= of:
        return MiniCore(mini_core_sets(), of)
    return MiniCore(mini_core_sets(max(2, options.limit // (len(LANGUAGES) * len(KINDS)))), of)


def stratum(one: MatchedSet) -> str:
    """Sets of one task and language: each has the same weight in the mean."""
    return f"{one.task}-{one.language}"


def choice_tokens(tokenizer: Tokenizer, one: MatchedSet) -> list[ChoiceTokens]:
    """One item a context. Continuations are tokenised apart from it, so that they are the same in all contexts."""
    choices = [tokenizer.encode(choice) for choice in one.choices]
    return [
        ChoiceTokens([tokenizer.bos_id, *tokenizer.encode(one.shots + context)], choices) for context in one.contexts
    ]


def accuracy(table: np.ndarray) -> float:
    """Of a (k, k) table of log-likelihoods, contexts by continuations: the share of contexts that pick their own."""
    lifted = table - table.mean(axis=0)
    best = lifted >= lifted.max(axis=1, keepdims=True) - _TIE
    return float(np.mean(np.diag(best) / best.sum(axis=1)))


def mini_core_result(sets: Sequence[MatchedSet], tables: Sequence[np.ndarray], of: int) -> TaskResult:
    """The result of (k, k) tables of log-likelihoods, one a set."""
    groups, k = [stratum(one) for one in sets], np.array([len(one.contexts) for one in sets])
    acc = np.array([accuracy(table) for table in tables])
    sizes = {group: groups.count(group) for group in groups}
    weights = np.array([1 / (sizes[group] * len(sizes)) for group in groups]) / (1 - 1 / k)
    centred = (acc - 1 / k) / (1 - 1 / k)
    tasks = {
        group: {"value": float(values.mean()), "stderr": float(values.std(ddof=1) / math.sqrt(len(values)))}
        for group in sizes
        if len(values := centred[np.array(groups) == group])
    }
    parts: dict[str, float] = {
        language: float(np.mean([task["value"] for group, task in tasks.items() if group.endswith(f"-{language}")]))
        for language in LANGUAGES
    }
    records: list[dict[str, Any]] = [
        {
            "id": one.id,
            "prompt": one.shots + one.contexts[0],
            "reply": one.choices[int(np.argmax((table - table.mean(axis=0))[0]))],
            "gold": one.choices[0],
            "contexts": one.contexts,
            "choices": one.choices,
            "logprobs": table.tolist(),
            "scores": {"centred_acc": float(score)},
        }
        for one, table, score in zip(sets, tables, acc, strict=True)
    ]
    value = float(np.mean([task["value"] for task in tasks.values()]))
    details = {"value": value, "version": VERSION, "tasks": tasks, **parts, "of": of}
    metric = "centred_acc"
    return TaskResult("mini_core", {metric: acc}, {metric: 0.0}, metric, groups, records, details, {metric: weights})
