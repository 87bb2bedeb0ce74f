"""Tasks during training, the best evaluation so far, and the checkpoint that is kept for it."""

import json
import math
import random

import processes_helpers as ph
import pytest
import training_helpers as th

from minimind_jax.config import higher_is_better
from minimind_jax.errors import UserError
from minimind_jax.evaluation.task import TaskOptions
from minimind_jax.evaluation.tasks import open_task
from minimind_jax.training.best import Best, BestSoFar
from minimind_jax.workdir import load_model

LIMIT = 36
STEPS = 12
OPTIONS = {
    "steps": STEPS,
    "eval_every": 4,
    "save_every": 4,
    "keep": 20,
    "eval_tasks": "mini_core",
    "eval_tasks_limit": LIMIT,
}


@pytest.fixture
def run(corpus, cache, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))

    def run(workdir, **more) -> str:
        th.run_here(*th.overrides(workdir, corpus, **(OPTIONS | more)))
        return capsys.readouterr().out

    return run


def scores(workdir) -> dict[int, float]:
    return {line["step"]: line["task/mini_core"] for line in th.metrics(workdir) if "task/mini_core" in line}


def best_steps(workdir) -> list[int]:
    return [line["step"] for line in th.metrics(workdir) if line.get("best")]


def expected_best(values: dict[int, float]) -> list[int]:
    return [step for step in values if all(values[step] > values[s] for s in values if s < step)]


def test_scores_are_those_of_the_checkpoints(tmp_path, run):
    """Without held-out data; the numbers are what the saved parameters get, and the best line is marked."""
    workdir = tmp_path / "run"
    said = run(workdir)
    measured = scores(workdir)
    assert list(measured) == [4, 8, 12]
    task = open_task("mini_core", TaskOptions(limit=LIMIT))
    for step in (4, 12):
        result = task.run(load_model(workdir, step))
        line = th.metrics(workdir)[step - 1]
        assert (line["task/mini_core"], line["task/mini_core_stderr"]) == (result.mean(), result.stderr())
    assert best_steps(workdir) == expected_best(measured)
    assert "before training: mini_core" in said and "step 12: mini_core" in said and "best evaluation" in said
    assert said.count("(best so far)") == len(best_steps(workdir))
    before = json.loads((workdir / "checkpoints" / "4" / "meta" / "metadata").read_text("utf-8"))["before"]
    assert f"{before['task/mini_core']:.4f} ± " in said.split("mini_core", 1)[1]


@pytest.mark.slow
def test_resumed_run_has_the_same_scores_and_best(tmp_path, run):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    options = {"data__val_fraction": 0.1, "optim__schedule": "constant", "best": "task/mini_core", "keep_best": True}
    run(whole, **options | {"keep": 1, "save_every": 0})
    run(halves, **options | {"keep": 1, "save_every": 0, "steps": 8})
    run(halves, **options | {"keep": 1, "save_every": 0})
    assert scores(whole) == scores(halves)
    assert best_steps(whole) == best_steps(halves) == expected_best(scores(whole))
    # The last checkpoint and the best one are there, and no other.
    kept = sorted({STEPS, best_steps(whole)[-1]})
    assert th.checkpoint_steps(whole) == th.checkpoint_steps(halves) == kept


@pytest.mark.slow
def test_best_checkpoint_is_kept_while_others_go(tmp_path, run):
    """A learning rate that ruins the model: the first evaluation stays the best, and its checkpoint outlives `keep`."""
    workdir = tmp_path / "run"
    options = {"data__val_fraction": 0.1, "eval_tasks": "", "eval_tasks_limit": 0, "keep": 2, "keep_best": True}
    ruinous = {"optim__lr": 3.0, "optim__grad_clip": 0.0, "optim__warmup_steps": 6, "optim__schedule": "constant"}
    said = run(workdir, **options, eval_every=3, save_every=1, **ruinous)
    losses = {line["step"]: line["val_loss"] for line in th.metrics(workdir) if "val_loss" in line}
    best = min(losses, key=losses.__getitem__)
    assert best < 11 and best_steps(workdir)[-1] == best
    assert th.checkpoint_steps(workdir) == [best, 11, 12]
    assert f"at step {best}, saved: --step {best} takes it" in " ".join(said.replace("│", " ").split())


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"mesh__data": 2}, {"mesh__fsdp": 2}])
def test_sharded_parameters_score_the_same(tmp_path, run, mesh):
    run(tmp_path / "run", **mesh, steps=3)
    workdir = tmp_path / "run"
    result = open_task("mini_core", TaskOptions(limit=LIMIT)).run(load_model(workdir, 3))
    assert scores(workdir) == {3: result.mean()}


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"eval_tasks": "mini_cor"}, "there is no task 'mini_cor'"),
        ({"eval_tasks": "mini_core:a.jsonl"}, "mini_core needs no file"),
        ({"eval_tasks": "gsm8k"}, "write --task gsm8k:PATH"),
        ({"eval_tasks": "gsm8k:nowhere.jsonl"}, "nowhere.jsonl"),
        ({"eval_tasks": "mini_core,mini_core"}, "names mini_core twice"),
        ({"eval_every": 0}, "eval_every=0 never evaluates"),
        ({"best": "val_loss"}, "best=val_loss needs held-out data"),
        ({"best": "task/gsm8k"}, "best='task/gsm8k' is not one of val_loss"),
        ({"eval_tasks": "", "keep_best": True}, "keep_best=True finds nothing measured"),
        ({"eval_tasks_limit": -1}, "eval_tasks_limit=-1 must be at least 0"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(tmp_path, run, keys, sentence):
    with pytest.raises(UserError) as raised:
        run(tmp_path / "run", **keys)
    assert sentence in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("metric", ["val_loss", "val_rewards/accuracies", "task/mini_core", "task/loss"])
def test_best_so_far_is_the_strict_extreme_of_what_was_measured(metric):
    rng = random.Random(0)
    lines = [{"step": i, metric: rng.choice([None, math.nan, 1.0, 2.0, 3.0, 4.0])} for i in range(1, 9)]
    lines.append({"step": 9})
    for cut in range(len(lines)):
        following = BestSoFar(metric, lines[:cut])
        for line in lines[cut:]:
            following.update(line["step"], line)
        values = [(line[metric], line["step"]) for line in lines if line.get(metric) in (1, 2, 3, 4)]
        sign = 1 if higher_is_better(metric) else -1
        value, step = max(values, key=lambda one: (sign * one[0], -one[1]))
        assert following.best == Best(metric, step, value)


@pytest.mark.slow
def test_two_processes_agree_on_scores_and_on_the_best(tmp_path, corpus, cache):
    """One process runs the tasks; both save the checkpoint of a new best."""
    workdir = tmp_path / "run"
    keys = OPTIONS | {"mesh__data": 1, "mesh__fsdp": 2, "save_every": 0, "keep": 1, "keep_best": True}
    ph.succeed(ph.start(cache, th.overrides(workdir, corpus, **keys)))
    assert best_steps(workdir) == expected_best(scores(workdir))
    assert th.checkpoint_steps(workdir) == sorted({STEPS, best_steps(workdir)[-1]})
    result = open_task("mini_core", TaskOptions(limit=LIMIT)).run(load_model(workdir, STEPS))
    assert scores(workdir)[STEPS] == pytest.approx(result.mean())
