"""SIGTERM and Ctrl-C: the step under way is finished and saved, the exit code is 0, and the run goes on exactly."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import training_helpers as th

STEPS = 12


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, corpus, cache) -> Path:
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    result = th.run_command(cache, *th.overrides(workdir, corpus, save_every=0))
    assert result.returncode == 0, result.stderr
    return workdir


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_saves_exits_and_continues_exactly(tmp_path, corpus, cache, uninterrupted, name):
    workdir = tmp_path / "run"
    arguments = th.overrides(workdir, corpus, save_every=0)  # nothing but the signal saves
    stopped = th.run_command(cache, *arguments, before=th.signal_at_line(5, name))
    assert stopped.returncode == 0 and stopped.stderr == ""
    # The line of step 5 is written after step 6 was dispatched.
    (saved,) = th.checkpoint_steps(workdir)
    assert 5 <= saved <= 7
    assert f"stopped by a signal; step {saved} is saved" in stopped.stdout
    assert th.losses(workdir) == th.losses(uninterrupted)[:saved]
    again = th.run_command(cache, *arguments)
    assert again.returncode == 0 and th.resumed_from(again.stdout) == saved, again.stderr
    assert th.losses(workdir) == th.losses(uninterrupted)
    th.assert_same_checkpoint(workdir, uninterrupted, STEPS)


@pytest.mark.slow
def test_signal_from_outside(tmp_path, corpus, cache):
    """As a scheduler sends it, to a run that would take hours; the first line is written long before its end."""
    workdir = tmp_path / "run"
    process = th.start_command(cache, *th.overrides(workdir, corpus, steps=10**6, save_every=0))
    wait_for(lambda: th.lines_written(workdir) > 3)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and stderr == ""
    (saved,) = th.checkpoint_steps(workdir)
    assert f"step {saved} is saved" in stdout
    assert [step for step, _ in th.losses(workdir)] == list(range(1, saved + 1))


@pytest.mark.slow
def test_second_interrupt_ends_the_run_at_once(tmp_path, corpus, cache):
    """One line, no traceback, the exit code that shells know; what was saved stays good."""
    workdir = tmp_path / "run"
    process = th.start_command(cache, *th.overrides(workdir, corpus), before=th.slow_steps(600, first=6))
    wait_for(lambda: th.lines_written(workdir) == 6 and th.checkpoint_steps(workdir) == [4])
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stderr == "interrupted\n"
    assert len(th.checkpoint(workdir, 4)) > 30


@pytest.mark.slow
def test_signal_during_the_last_save_lets_it_finish(tmp_path, corpus, cache, uninterrupted):
    """The save runs on after the last step; a signal then must not tear it off."""
    workdir = tmp_path / "run"
    code = """
import os, signal
from minimind_jax.training.checkpoint import Checkpointer
save = Checkpointer.save
def save_and_signal(self, state, step, meta):
    save(self, state, step, meta)
    if step == 12:
        os.kill(os.getpid(), signal.SIGTERM)
Checkpointer.save = save_and_signal
"""
    result = th.run_command(cache, *th.overrides(workdir, corpus, save_every=0), before=code)
    assert result.returncode == 0 and result.stderr == ""
    th.assert_same_checkpoint(workdir, uninterrupted, STEPS)


def wait_for(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
