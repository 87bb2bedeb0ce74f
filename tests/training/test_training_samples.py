"""samples.jsonl and report.json: each sample once, whatever a killed run left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minimind_jax.errors import UserError
from minimind_jax.training.metrics import MetricsLog
from minimind_jax.training.trackers import open_trackers
from minimind_jax.workdir import Workdir, read_metrics, read_steps


def open_log(workdir: Workdir, resumed_at: int) -> MetricsLog:
    return MetricsLog(workdir, resumed_at, open_trackers([], workdir, resumed_at, {}, pytest.fail))


def write(workdir: Workdir, steps: range, resumed_at: int, text: str) -> None:
    log = open_log(workdir, resumed_at)
    for step in steps:
        for prompt in ("a", "中国"):
            log.write_sample(prompt, f"{text} {step}\n", step)
    log.close()


def test_a_sample_is_a_line(tmp_path: Path):
    write(Workdir(tmp_path), range(5, 6), 0, "x")
    assert [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()] == [
        {"step": 5, "prompt": "a", "text": "x 5\n"},
        {"step": 5, "prompt": "中国", "text": "x 5\n"},
    ]


@pytest.mark.parametrize("resumed_at", [0, 3, 5])
def test_samples_after_the_checkpoint_are_cut(tmp_path: Path, resumed_at: int):
    workdir = Workdir(tmp_path)
    write(workdir, range(1, 6), 0, "first")
    with open(workdir.samples, "a") as file:
        file.write('{"step": 6, "prom')  # a killed run's last line
    write(workdir, range(resumed_at + 1, 7), resumed_at, "again")
    samples = read_steps(workdir.samples)
    assert [s["step"] for s in samples] == [step for step in range(1, 7) for _ in range(2)]
    assert [s["text"].split()[0] for s in samples] == ["first"] * 2 * resumed_at + ["again"] * 2 * (6 - resumed_at)


def test_a_sample_is_in_the_file_at_once(tmp_path: Path):
    log = open_log(Workdir(tmp_path), 0)
    log.write_sample("p", "t", 1)
    assert len(read_steps(tmp_path / "samples.jsonl")) == 1
    log.close()


def test_a_damaged_line_is_named_and_nothing_is_lost(tmp_path: Path):
    workdir = Workdir(tmp_path)
    write(workdir, range(1, 3), 0, "x")
    with open(workdir.samples, "a") as file:
        file.write('{"prompt": "no step"}\n')
    before = workdir.samples.read_bytes()
    with pytest.raises(UserError, match=r"samples\.jsonl:5 is damaged: delete this line, or mend it"):
        open_log(workdir, 2)
    assert workdir.samples.read_bytes() == before


def test_what_was_measured_before(tmp_path: Path):
    """It stands in a file of its own: the metrics begin with the first step, for all who read them."""
    log = open_log(Workdir(tmp_path), 0)
    log.write_before({"val_loss": 9.5})
    log.close()
    assert json.loads((tmp_path / "report.json").read_text()) == {"before": {"val_loss": 9.5}}
    assert read_metrics(Workdir(tmp_path)) == []
