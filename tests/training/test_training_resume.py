"""A run that is killed and started again ends where the uninterrupted one does, bit for bit."""

import json
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import training_helpers as th

from minimind_jax.errors import UserError

STEPS, SAVE_EVERY = 12, 4
# Everything that a continued run has to carry over is in play: accumulation, evaluation, weight decay, clipping.
OPTIONS = {
    "accum_steps": 2,
    "data__val_fraction": 0.1,
    "eval_every": 6,
    "save_every": SAVE_EVERY,
    "log_to": "tensorboard",
    "sample_prompts": "('The sea', '大海')",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, corpus, cache) -> Path:
    """The workdir of `STEPS` steps at once; it also leaves the compiled step in `cache`."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    result = th.run_command(cache, *th.overrides(workdir, corpus, **OPTIONS))
    assert result.returncode == 0, result.stderr
    assert [step for step, _ in th.losses(workdir)] == list(range(1, STEPS + 1))
    samples = [json.loads(line) for line in (workdir / "samples.jsonl").read_text("utf-8").splitlines()]
    prompts = json.loads((workdir / "config.json").read_text())["sample_prompts"]
    assert prompts and [(s["step"], s["prompt"]) for s in samples] == [(s, p) for s in (6, 12) for p in prompts]
    before = json.loads((workdir / "report.json").read_text())["before"]
    assert before["val_loss"] > th.metrics(workdir)[-1]["val_loss"]
    return workdir


def assert_equal_runs(workdir: Path, uninterrupted: Path) -> None:
    assert th.losses(workdir) == th.losses(uninterrupted)  # once each, no gap, the same numbers
    validation = [[line.get("val_loss") for line in th.metrics(w)] for w in (workdir, uninterrupted)]
    assert validation[0] == validation[1] and validation[0].count(None) == STEPS - 2
    for name in ("samples.jsonl", "report.json"):
        assert (workdir / name).read_bytes() == (uninterrupted / name).read_bytes()
    th.assert_same_checkpoint(workdir, uninterrupted, STEPS)
    leftovers = [p.name for p in (workdir / "checkpoints").iterdir() if not p.name.isdecimal()]
    assert not leftovers


def kill_and_continue(workdir: Path, corpus: Path, cache: Path, before: str, *more: str) -> int:
    """Runs until `before` kills the process, then the same command (and `more`); returns the step it resumed from."""
    arguments = th.overrides(workdir, corpus, **OPTIONS)
    killed = th.run_command(cache, *arguments, before=before)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = th.run_command(cache, *arguments, *more)
    assert again.returncode == 0, again.stderr
    return th.resumed_from(again.stdout)


def test_killed_between_saves(tmp_path, corpus, cache, uninterrupted):
    resumed = kill_and_continue(tmp_path / "run", corpus, cache, th.signal_at_line(7, "SIGKILL", saved=4))
    assert resumed == 4
    assert_equal_runs(tmp_path / "run", uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "expected"), [("during", 4), ("after", 8)])
def test_killed_while_a_save_is_written_and_right_after(tmp_path, corpus, cache, uninterrupted, moment, expected):
    workdir = tmp_path / "run"
    # Without saving step 8 again: what the killed save left must go all the same.
    resumed = kill_and_continue(workdir, corpus, cache, th.kill_at_commit(8, moment), "--config.save_every=0")
    assert resumed == expected
    assert_equal_runs(workdir, uninterrupted)


@pytest.mark.slow
def test_killed_before_the_first_save(tmp_path, corpus, cache, uninterrupted):
    """Whatever it left, the same command starts over: while the workdir is made, and before any checkpoint."""
    workdir = tmp_path / "run"
    arguments = th.overrides(workdir, corpus, **OPTIONS)
    for before in (th.KILL_IN_TOKENIZER_SAVE, th.signal_at_line(2, "SIGKILL")):
        assert th.run_command(cache, *arguments, before=before).returncode == -signal.SIGKILL
        assert not th.checkpoint_steps(workdir)
    again = th.run_command(cache, *arguments)
    assert again.returncode == 0, again.stderr
    assert "resumed from" not in again.stdout
    assert_equal_runs(workdir, uninterrupted)
    assert th.listing(workdir / "tokenizer") == th.listing(uninterrupted / "tokenizer")


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path, corpus, cache, uninterrupted):
    """Killed from outside after random times, again and again, until it happens to finish."""
    rng = random.Random(0)
    workdir = tmp_path / "run"
    arguments = [*th.overrides(workdir, corpus, **OPTIONS), "--config.save_every=1"]
    # Slow enough that most kills fall between two steps, or into the save that each step starts.
    before = th.slow_steps(0.15)
    resumed = []
    for _ in range(12):
        process = th.start_command(cache, *arguments, before=before)
        started = th.lines_written(workdir)
        while process.poll() is None and th.lines_written(workdir) == started:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        stdout, stderr = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), stderr
        if "resumed from" in stdout:
            resumed.append(th.resumed_from(stdout))
        if process.returncode == 0:
            break
    else:
        final = th.run_command(cache, *arguments)
        assert final.returncode == 0, final.stderr
    assert resumed and resumed == sorted(resumed) and resumed[-1] > 0
    assert_equal_runs(workdir, uninterrupted)


@pytest.mark.slow
def test_killed_and_continued_with_a_cold_compile_cache(tmp_path, corpus, cache, uninterrupted):
    """A step that was compiled anew computes what the one from the cache did."""
    workdir = tmp_path / "run"
    arguments = th.overrides(workdir, corpus, **OPTIONS)
    assert any(cache.rglob("*train_step*")), "the first run left no compiled step, so no run was warm"
    assert (
        th.run_command(cache, *arguments, before=th.signal_at_line(7, "SIGKILL", saved=4)).returncode == -signal.SIGKILL
    )
    again = th.run_command(tmp_path / "cold", *arguments)
    assert again.returncode == 0 and th.resumed_from(again.stdout) == 4, again.stderr
    assert_equal_runs(workdir, uninterrupted)


# --- Within this process: what a second command does -----------------------------------------------


@pytest.fixture
def finished(tmp_path, corpus, cache, monkeypatch) -> Path:
    """A finished run of 4 steps with a checkpoint at 2 and 4."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    workdir = tmp_path / "run"
    th.run_here(*th.overrides(workdir, corpus, steps=4, save_every=2))
    return workdir


def test_a_finished_run_is_left_alone(finished, corpus, capsys):
    before = th.listing(finished)
    capsys.readouterr()
    th.run_here(*th.overrides(finished, corpus, steps=4, save_every=2))
    said = capsys.readouterr().out
    assert "already stands at step 4 of 4: nothing to do" in said
    assert "attention  xla (on cpu)" in said
    assert th.listing(finished) == before


def test_more_steps_continue_and_say_what_becomes_of_the_schedule(finished, corpus, capsys):
    first = th.losses(finished)
    capsys.readouterr()
    th.run_here(*th.overrides(finished, corpus, steps=6, save_every=2))
    said = " ".join(capsys.readouterr().out.split())
    assert "resumed from step 4" in said
    # Cosine from 1e-2 to 1e-3 after 2 steps of warm-up: at its end before, halfway now.
    assert "ends at step 6 instead of 4" in said and "lr at step 4 goes from 0.001 to 0.0055" in said
    assert th.losses(finished)[:4] == first and [step for step, _ in th.losses(finished)] == [1, 2, 3, 4, 5, 6]
    assert th.metrics(finished)[4]["lr"] == pytest.approx(0.0055)


@pytest.mark.slow
def test_a_wsd_run_is_extended_from_the_end_of_its_stable_part(tmp_path, corpus, cache, monkeypatch, capsys):
    """As if it had been longer all along; its checkpoint stays though `keep` is long over."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    options = {"optim__schedule": "wsd", "optim__decay_ratio": 0.5, "save_every": 1, "keep": 1}
    run, longer = tmp_path / "run", tmp_path / "longer"
    th.run_here(*th.overrides(longer, corpus, steps=12, **options))
    th.run_here(*th.overrides(run, corpus, steps=8, **options))
    assert th.checkpoint_steps(run) == [4, 8] and th.checkpoint_steps(longer) == [6, 12]
    capsys.readouterr()
    interrupted = tmp_path / "from the decay"
    shutil.copytree(run, interrupted)
    th.run_here(*th.overrides(interrupted, corpus, steps=12, **options))
    said = " ".join(capsys.readouterr().out.split())
    assert "lr at step 8 goes from 0.001 to 0.0048" in said and "decay that began at step 4" in said
    assert "stop and remove all of" in said and "after step 4, whose checkpoint was kept" in said
    shutil.rmtree(run / "checkpoints" / "8")
    th.run_here(*th.overrides(run, corpus, steps=12, **options))
    said = " ".join(capsys.readouterr().out.split())
    assert "resumed from step 4" in said and "lr at step 4 stays 0.01" in said and "decay that" not in said
    assert th.losses(run) == th.losses(longer)
    th.assert_same_checkpoint(run, longer, 12)


@pytest.mark.slow
def test_a_warm_up_into_the_decay_is_said(tmp_path, corpus, cache, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    options = {"optim__schedule": "wsd", "optim__decay_ratio": 0.5, "steps": 4}
    th.run_here(*th.overrides(tmp_path / "a", corpus, optim__warmup_steps=3, **options))
    said = " ".join(capsys.readouterr().out.split())
    assert "begins at step 2 of 4, within the optim.warmup_steps=3: lr does not reach 0.01" in said
    th.run_here(*th.overrides(tmp_path / "b", corpus, optim__warmup_steps=2, **options))
    assert "does not reach" not in capsys.readouterr().out


def test_fewer_steps_than_done_change_nothing(finished, corpus, capsys):
    before = th.listing(finished)
    th.run_here(*th.overrides(finished, corpus, steps=3, save_every=2))
    assert "nothing to do" in capsys.readouterr().out
    assert th.listing(finished) == before


@pytest.mark.slow
def test_a_run_of_another_versions_data_format_says_how_to_go_on(finished, corpus, tmp_path):
    """As the version before left it, which had another fingerprint of the same data and none of its format."""
    config = json.loads((finished / "config.json").read_text())
    del config["identity"]["data.format"]
    config["identity"]["data.content"] = "another"
    (finished / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="begun by another version") as caught:
        th.run_here(*th.overrides(finished, corpus, steps=20))
    (advice,) = re.findall(r"--config\.init_from=(\S+)", str(caught.value))
    th.run_here(*th.overrides(tmp_path / "next", corpus, steps=1, init_from=advice))
    assert (tmp_path / "next" / "checkpoints").is_dir()


@pytest.mark.slow
def test_two_commands_cannot_write_one_workdir(tmp_path, corpus, cache):
    workdir = tmp_path / "run"
    arguments = th.overrides(workdir, corpus, steps=1000)
    first = th.start_command(cache, *arguments, before=th.slow_steps(0.1))
    while not th.lines_written(workdir) and first.poll() is None:
        time.sleep(0.05)
    second = th.run_command(cache, *arguments)
    first.kill()
    first.communicate()
    assert second.returncode == 1
    assert f"in use by another run (process {first.pid})" in second.stderr and "Traceback" not in second.stderr
