"""From a step's device numbers to a line of metrics.jsonl."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from minimind_jax.errors import UserError
from minimind_jax.objectives import Batch
from minimind_jax.training.console import TrainingConsole

_GIVE_UP_AFTER = 5  # non-finite steps in a row


class StepReport:
    """Turns each finished step's report into a metrics line, and watches for non-finite steps.

    Rates cover the time since the line before, without evaluation and saving (`paused`).
    """

    def __init__(
        self, console: TrainingConsole, batch_size: int, seq_len: int, flops_per_token: float, peak_flops: float
    ):
        self._console, self._batch_size, self._tokens_per_step = console, batch_size, batch_size * seq_len
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self._bad_in_a_row = 0
        self._restart_window()

    def _restart_window(self) -> None:
        self._began, self._steps, self._real_tokens, self._waited, self._paused = time.perf_counter(), 0, 0, 0.0, 0.0

    def timing_waits(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Passes batches through, adding up the time that the loop stood still for them."""
        asked = time.perf_counter()
        for batch in batches:
            self._waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not training: evaluation, saving."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began

    def step(self, step: int, report: dict[str, jax.Array]) -> dict[str, Any]:
        """Waits for a step's numbers and checks them. Raises UserError after several non-finite steps in a row."""
        values = {key: value.item() for key, value in jax.device_get(report).items()}
        self._steps += 1
        self._real_tokens += values["real_tokens"]
        if values.pop("finite"):
            self._bad_in_a_row = 0
        else:
            self._bad_in_a_row += 1
            first = (step - 1) * self._batch_size
            self._console.say(
                f"step {step}: loss or gradient is not finite, update skipped (rows {first} to "
                f"{first + self._batch_size - 1} of the run; {values['skipped']} so far)",
                style="yellow",
            )
            if self._bad_in_a_row >= _GIVE_UP_AFTER:
                raise UserError(
                    f"{_GIVE_UP_AFTER} steps in a row up to step {step} had a non-finite loss or gradient: the last "
                    "checkpoint is intact; lower optim.lr, lengthen optim.warmup_steps, or look at the rows named above"
                )
        return values

    def line(self, step: int, values: dict[str, Any], validation: dict[str, float]) -> dict[str, Any]:
        """The metrics line of a step, with rates over the window that it closes."""
        seconds = max(time.perf_counter() - self._began - self._paused, 1e-9)
        tokens_per_s = self._steps * self._tokens_per_step / seconds
        line = {
            "step": step,
            **{k: v for k, v in values.items() if k not in ("real_tokens", "skipped")},
            "tokens_per_s": tokens_per_s,
            "real_tokens_per_s": self._real_tokens / seconds,
            "mfu": tokens_per_s * self._flops_per_token / self._peak_flops,
            "data_wait": min(self._waited / seconds, 1.0),
            "skipped": values["skipped"],
            "peak_memory_gib": peak_memory_gib(),
            **validation,
        }
        self._restart_window()
        return {k: v if math.isfinite(v) else None for k, v in line.items()}  # JSON has no NaN


def peak_memory_gib() -> float:
    """Peak memory of the fullest local device; on the CPU, of this process."""
    stats = [d.memory_stats() for d in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    if peaks:
        return max(peaks) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
