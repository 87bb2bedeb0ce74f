"""metrics.jsonl: every step once, whatever a killed run left behind; and TensorBoard's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minimind_jax.errors import UserError
from minimind_jax.training.metrics import MetricsLog
from minimind_jax.training.trackers import open_trackers
from minimind_jax.workdir import Workdir, read_metrics


def open_log(workdir: Workdir, resumed_at: int, *trackers: str) -> MetricsLog:
    return MetricsLog(workdir, resumed_at, open_trackers(trackers, workdir, resumed_at, {}, pytest.fail))


def write(workdir: Workdir, steps: range, resumed_at: int, *trackers: str, loss: float = 1.0) -> None:
    log = open_log(workdir, resumed_at, *trackers)
    for step in steps:
        log.write({"step": step, "loss": loss * step, "grad_norm": None})
    log.close()


def steps(workdir: Workdir) -> list[int]:
    return [line["step"] for line in read_metrics(workdir)]


def test_nothing_logged_yet(tmp_path: Path):
    assert read_metrics(Workdir(tmp_path)) == []


@pytest.mark.parametrize("resumed_at", [0, 1, 4, 7])
def test_lines_after_the_checkpoint_are_cut(tmp_path: Path, resumed_at: int):
    workdir = Workdir(tmp_path)
    write(workdir, range(1, 8), 0)
    write(workdir, range(resumed_at + 1, 11), resumed_at, loss=2.0)
    assert steps(workdir) == list(range(1, 11))
    losses = {line["step"]: line["loss"] for line in read_metrics(workdir)}
    assert all(losses[step] == (step if step <= resumed_at else 2 * step) for step in range(1, 11))


def test_half_a_last_line_is_dropped(tmp_path: Path):
    workdir = Workdir(tmp_path)
    write(workdir, range(1, 4), 0)
    with open(workdir.metrics, "a") as file:
        file.write('{"step": 4, "lo')
    assert steps(workdir) == [1, 2, 3]
    write(workdir, range(4, 6), 3)
    assert [json.loads(line)["step"] for line in workdir.metrics.read_text().splitlines()] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("damage", [b"\x00\x00\n", b'{"step": 2, \n', b"[]\n", b"{}\n", b'{"loss": "\xff"}\n'])
def test_a_damaged_line_is_named_and_nothing_is_lost(tmp_path: Path, damage: bytes):
    workdir = Workdir(tmp_path)
    workdir.metrics.write_bytes(b'{"step": 1}\n' + damage + b'{"step": 3}\n')
    before = workdir.metrics.read_bytes()
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is damaged"):
        open_log(workdir, 3)
    assert workdir.metrics.read_bytes() == before


def test_lines_are_in_the_file_at_once(tmp_path: Path):
    """A kill -9 loses no line that was written: nothing waits in a buffer of ours."""
    workdir = Workdir(tmp_path)
    log = open_log(workdir, 0)
    log.write({"step": 1})
    assert steps(workdir) == [1]
    log.sync()
    log.close()
    assert not list(tmp_path.glob("*.tmp"))


def test_no_tracker_no_directory(tmp_path: Path):
    workdir = Workdir(tmp_path)
    write(workdir, range(1, 3), 0)
    assert not workdir.tracker("tensorboard").exists()


def test_tensorboard_reads_the_files(tmp_path: Path):
    workdir = Workdir(tmp_path)
    log = open_log(workdir, 0, "tensorboard")
    for step in range(1, 6):
        log.write({"step": step, "loss": step / 2, "skipped": 0, "grad_norm": None})
    log.write_sample("中国", "的首都", 5)
    log.close()
    events = EventAccumulator(str(workdir.tracker("tensorboard"))).Reload()
    assert sorted(events.Tags()["scalars"]) == ["loss", "skipped"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(s, s / 2) for s in range(1, 6)]
    (tag,) = events.Tags()["tensors"]
    assert "sample/中国" in tag
    (text,) = events.Tensors(tag)
    assert text.step == 5 and text.tensor_proto.string_val[0].decode() == "的首都"


def test_tensorboard_forgets_what_a_resumed_run_does_again(tmp_path: Path):
    workdir = Workdir(tmp_path)
    write(workdir, range(1, 8), 0, "tensorboard")
    write(workdir, range(5, 9), 4, "tensorboard", loss=2.0)
    events = EventAccumulator(str(workdir.tracker("tensorboard"))).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        *((step, step) for step in range(1, 5)),
        *((step, 2 * step) for step in range(5, 9)),
    ]
