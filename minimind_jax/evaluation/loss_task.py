"""The loss on a held-out file as a task, so that models can be compared document by document."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from minimind_jax.evaluation.file import evaluate_file
from minimind_jax.evaluation.result import TaskResult
from minimind_jax.evaluation.scoring import BATCH_TOKENS
from minimind_jax.evaluation.task import TaskOptions
from minimind_jax.workdir import LoadedModel


@dataclass(frozen=True)
class LossTask:
    """`evaluate_file`; items are the documents, or conversations, that hold a target.

    `bits_per_byte` compares models of any tokenizer, `loss` (nats per target token) those of one. Both are sums over
    all documents, weighted so; the lower the better.
    """

    path: Path
    batch_tokens: int
    limit: int | None

    @property
    def name(self) -> str:
        return "loss"

    def run(self, model: LoadedModel) -> TaskResult:
        """Raises UserError as `evaluate_file`. Details are those of `TextScore`."""
        score = evaluate_file(model, self.path, self.batch_tokens, self.limit)
        numbers, nats, targets, n_bytes = score.by_document
        scores = {"bits_per_byte": nats / math.log(2) / n_bytes, "loss": nats / targets}
        weights = {"bits_per_byte": n_bytes / n_bytes.sum(), "loss": targets / targets.sum()}
        rows = zip(numbers.tolist(), nats.tolist(), targets.tolist(), n_bytes.tolist(), strict=True)
        records = [{"id": i, "nats": nat, "target_tokens": n, "bytes": size} for i, nat, n, size in rows]
        details = dataclasses.asdict(score)
        del details["by_document"]
        if self.limit is not None:
            details["notes"] = [f"at most {self.limit} records, evenly spread over {self.path}"]
        return TaskResult(self.name, scores, {}, "bits_per_byte", [""] * len(nats), records, details, weights)


def open_loss(options: TaskOptions) -> LossTask:
    """The file is read when a model runs: its tokenizer says what a document is."""
    assert options.path is not None
    batch_tokens = BATCH_TOKENS if options.batch_tokens is None else options.batch_tokens
    return LossTask(options.path, batch_tokens, options.limit)
