"""The curves: what is drawn, and what cannot be."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from step_helpers import make_config

from minimind_jax.errors import UserError
from minimind_jax.training import plot
from minimind_jax.workdir import Workdir

PNG = b"\x89PNG\r\n\x1a\n"


def make_run(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.mkdir()
    workdir = Workdir(path)
    workdir.write_config(make_config(batch_size=8).to_dict())
    workdir.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def line(step: int, loss: float | None = 1.0, **more: float) -> dict[str, Any]:
    return {"step": step, "loss": loss, "lr": 0.1, "tokens_per_s": 100.0, **more}


def test_one_and_several_runs_become_a_picture(tmp_path: Path):
    runs = [make_run(tmp_path / name, [line(1), line(2, None), line(3, val_loss=2.0, val_bpb=1.0)]) for name in "ab"]
    plot.plot(runs[:1], tmp_path / "one.png")
    plot.plot(runs, tmp_path / "two.png")
    one, two = ((tmp_path / name).read_bytes() for name in ("one.png", "two.png"))
    assert one.startswith(PNG) and two.startswith(PNG) and one != two


def test_curves_stand_over_the_tokens_seen():
    axes = Figure().subplots(2, 2).flat
    lines = [line(10, 4.0), line(20, None), line(30, 2.0, val_loss=3.0, val_bpb=1.5)]
    plot._draw(axes, lines, tokens_per_step=1000, name="run", color="C0")
    raw, smoothed, held_out = axes[0].lines
    np.testing.assert_allclose(raw.get_xydata(), [[0.01, 4.0], [0.03, 2.0]])  # a null is left out
    np.testing.assert_allclose(smoothed.get_ydata(), [4.0, (0.9 * 4 + 2) / 1.9])
    np.testing.assert_allclose(held_out.get_xydata(), [[0.03, 3.0]])
    np.testing.assert_allclose(axes[1].lines[0].get_xydata(), [[0.03, 1.5]])
    np.testing.assert_allclose(axes[2].lines[0].get_xdata(), [0.01, 0.02, 0.03])


def test_smoothing_leaves_a_constant_as_it_is():
    np.testing.assert_allclose(plot._smoothed(np.full(50, 3.5)), 3.5)


def test_a_run_without_steps_is_named(tmp_path: Path):
    for path in (tmp_path / "nothing", make_run(tmp_path / "empty", [])):
        with pytest.raises(UserError, match=f"{path} has logged no step yet"):
            plot.plot([path], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def command(monkeypatch: pytest.MonkeyPatch, *arguments: Path | str) -> None:
    monkeypatch.setattr(sys, "argv", ["plot", *map(str, arguments)])
    plot.main()


def test_the_command_writes_into_the_workdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = make_run(tmp_path / "run", [line(1)])
    command(monkeypatch, run)
    assert (run / "curves.png").read_bytes().startswith(PNG)
    assert str(run / "curves.png") in capsys.readouterr().out


@pytest.mark.parametrize("out", ["missing/x.png", "."])
def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str):
    run = make_run(tmp_path / "run", [line(1)])
    with pytest.raises(SystemExit, match=r"^error: --out .* cannot be written"):
        command(monkeypatch, run, "--out", tmp_path / out)
