"""A step's numbers on their way into metrics.jsonl."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from minimind_jax.errors import UserError
from minimind_jax.training import report as report_module
from minimind_jax.training.report import StepReport, peak_memory_gib

BATCH_SIZE, SEQ_LEN, FLOPS, PEAK = 4, 10, 50.0, 1e4


class Clock:
    """`time`, advanced by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Console:
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str, style: str | None = None) -> None:
        self.said.append(text)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(report_module, "time", clock)
    return clock


@pytest.fixture
def console() -> Console:
    return Console()


@pytest.fixture
def report(clock: Clock, console: Console) -> StepReport:
    return StepReport(console, BATCH_SIZE, SEQ_LEN, FLOPS, PEAK)  # type: ignore[arg-type]


def numbers(loss: float = 2.5, finite: bool = True, skipped: int = 0) -> dict:
    return {
        "loss": np.float32(loss),
        "grad_norm": np.float32(loss if finite else math.nan),
        "lr": np.float32(0.125),
        "finite": np.bool_(finite),
        "skipped": np.int32(skipped),
        "real_tokens": np.int32(30),
        "target_tokens": np.int32(28),
    }


def test_a_line_has_all_fields_and_plain_numbers(report: StepReport, clock: Clock):
    clock.now += 2
    line = report.line(1, report.step(1, numbers()), {"val_loss": 3.0, "val_bpb": 1.5})
    memory = line.pop("peak_memory_gib")
    assert memory == pytest.approx(peak_memory_gib(), rel=0.1)
    assert line == {
        "step": 1,
        "loss": 2.5,
        "grad_norm": 2.5,
        "lr": 0.125,
        "target_tokens": 28,
        "tokens_per_s": 20.0,  # 4 rows of 10 in 2 s
        "real_tokens_per_s": 15.0,
        "mfu": 20.0 * FLOPS / PEAK,
        "data_wait": 0.0,
        "skipped": 0,
        "val_loss": 3.0,
        "val_bpb": 1.5,
    }
    assert json.loads(json.dumps(line)) == line


def test_rates_cover_the_steps_since_the_line_before(report: StepReport, clock: Clock):
    clock.now += 1
    report.line(1, report.step(1, numbers()), {})
    for step in (2, 3, 4):
        clock.now += 5
        values = report.step(step, numbers())
    line = report.line(4, values, {})
    assert line["tokens_per_s"] == pytest.approx(3 * 40 / 15) and line["real_tokens_per_s"] == pytest.approx(90 / 15)


def test_evaluation_and_saving_are_not_training_time(report: StepReport, clock: Clock):
    clock.now += 1
    with report.paused():
        clock.now += 1000
    clock.now += 1
    assert report.line(1, report.step(1, numbers()), {})["tokens_per_s"] == pytest.approx(20)


def test_waiting_for_data_is_a_share_of_the_time(report: StepReport, clock: Clock):
    def slow_batches():
        for _ in range(3):
            clock.now += 1
            yield {}

    for step, _ in enumerate(report.timing_waits(slow_batches()), 1):
        clock.now += 3
        values = report.step(step, numbers())
    assert report.line(3, values, {})["data_wait"] == pytest.approx(3 / 12)


def test_what_is_not_finite_becomes_null(report: StepReport, clock: Clock, console: Console):
    clock.now += 1
    values = report.step(1, numbers(math.inf, finite=False, skipped=1))
    line = report.line(1, values, {"val_loss": math.nan, "val_bpb": math.inf})
    for key in ("loss", "grad_norm", "val_loss", "val_bpb"):
        assert line[key] is None
    assert line["skipped"] == 1
    json.dumps(line, allow_nan=False)


def test_a_skipped_step_names_its_rows(report: StepReport, console: Console):
    report.step(3, numbers(math.nan, finite=False, skipped=1))
    (said,) = console.said
    assert "step 3" in said and "rows 8 to 11 of the run" in said and "1 so far" in said


def test_several_skipped_steps_in_a_row_stop_the_run(report: StepReport):
    for step in range(1, 5):
        report.step(step, numbers(math.nan, finite=False))
    report.step(5, numbers())  # one good step, and the count starts again
    for step in range(6, 10):
        report.step(step, numbers(math.nan, finite=False))
    with pytest.raises(UserError, match=r"5 steps in a row up to step 10 .*checkpoint is intact; lower optim\.lr"):
        report.step(10, numbers(math.nan, finite=False))
