"""`python -m minimind_jax.plan`: its numbers, its JSON, what it refuses, and that it opens no device."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizer_variants import write_variant

from minimind_jax.config import from_recipe
from minimind_jax.errors import UserError
from minimind_jax.model import count_params
from minimind_jax.plan.__main__ import main
from minimind_jax.plan.plan import make_plan
from minimind_jax.recipe import load_recipe
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.training.flops import flops_per_token
from minimind_jax.workdir import Workdir

REPOSITORY = Path(__file__).parents[2]
PRETRAIN = f"--config={REPOSITORY / 'configs' / 'pretrain.py'}"


def plan_of(*flags: str, **options):
    return make_plan(from_recipe(load_recipe(["plan", *flags])[0]), **options)


def test_the_8_gpu_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "plan.json"
    flags = ["--devices=8", "--peak-tflops=312", "--mfu", "0.4", "--tokens", "1000000000", f"--json={out}"]
    main([PRETRAIN, *flags])
    shown, plan = capsys.readouterr().out, json.loads(out.read_text())
    assert plan["params"] == 183_796_736 and "183.8 M parameters" in shown
    assert plan["mesh"] == {"data": 8, "fsdp": 1} and plan["rows_per_device"] == 16
    assert plan["tokens_per_step"] == 262_144
    assert plan["flops_per_token"] == 6 * plan["params"] + 12 * 16 * 1024 * 1024
    assert plan["tokens_per_s"] == pytest.approx(8 * 0.4 * 312e12 / plan["flops_per_token"])
    assert f"{plan['tokens_per_s']:,.0f} tokens/s" in shown
    # 976,563 rows of 1,024 tokens, 12 epochs, 256 rows a step
    assert plan["steps"] == 45_777 and "45,777 steps" in shown
    assert plan["seconds"] == pytest.approx(45_777 * 262_144 / plan["tokens_per_s"])
    assert plan["memory"]["params"] == {"float32": 4 * plan["params"]}
    assert plan["memory"]["gradients"] == {"float32": 8 * plan["params"]}
    assert plan["memory"]["optimizer"]["float32"] == 8 * plan["params"]
    assert plan["compute_dtype"] == "bfloat16" and "estimated" in shown


def test_without_a_peak_there_are_no_times_and_without_tokens_no_steps(capsys: pytest.CaptureFixture[str]):
    main([f"{PRETRAIN}:tiny"])
    out = capsys.readouterr().out
    assert "--tokens N (of one epoch) gives the steps" in out and "\ntime" not in out
    plan = plan_of(f"{PRETRAIN}:tiny")
    assert plan.steps is plan.tokens_per_s is plan.seconds is plan.seconds_per_step is None


def test_steps_of_the_recipe_win_over_tokens():
    assert plan_of(PRETRAIN, "--config.steps=77", devices=8, epoch_tokens=10**9).steps == 77


def test_rows_of_pairs_are_twice_as_long():
    recipe = REPOSITORY / "configs" / "dpo.py"
    plan = plan_of(f"--config={recipe}", "--config.data.max_seq_len=512", devices=8)
    assert plan.row_length == 1024
    assert plan.flops_per_token == flops_per_token(
        from_recipe(load_recipe(["plan", f"--config={recipe}"])[0]).model, 1024
    )


def test_fsdp_divides_the_state():
    alone = plan_of(PRETRAIN, devices=8).memory
    sharded = plan_of(PRETRAIN, "--config.mesh.data=1", "--config.mesh.fsdp=8", devices=8).memory
    assert sharded.state == pytest.approx(alone.state / 8, rel=0.01)
    assert sharded.activations < alone.activations


def test_an_init_from_that_is_there_gives_the_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sft = f"--config={REPOSITORY / 'configs' / 'sft_512.py'}"
    base = from_recipe(load_recipe(["plan", f"{PRETRAIN}:tiny"])[0]).model
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"format_version": 1, "model": base.to_dict()}))
    main([sft, f"--config.init_from={tmp_path / 'run'}", "--devices=8"])
    assert f"256 x 4, {count_params(base) / 1e6:.1f} M parameters" in capsys.readouterr().out
    main([sft, f"--config.init_from={tmp_path / 'later'}", "--devices=8"])
    out = capsys.readouterr().out
    assert "1024 x 16, 183.8 M parameters" in out
    assert f"note: {tmp_path / 'later'} is not there yet: planned with the recipe's own model" in out


def test_a_vocabulary_that_will_be_resized_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sft = f"--config={REPOSITORY / 'configs' / 'sft_512.py'}"
    base = from_recipe(load_recipe(["plan", f"{PRETRAIN}:tiny"])[0]).model
    workdir = Workdir(tmp_path / "run")
    workdir.checkpoints.mkdir(parents=True)
    workdir.write_config({"model": base.to_dict()})
    load_tokenizer().save(workdir.tokenizer)
    small = write_variant(tmp_path / "small", n_merges=1728)
    flags = [sft, f"--config.init_from={workdir.path}", f"--config.tokenizer={small}", "--devices=8"]
    main([*flags, "--config.tokenizer_change=resize"])
    out = capsys.readouterr().out
    assert f"{count_params(dataclasses.replace(base, vocab_size=2048)) / 1e6:.1f} M parameters" in out
    assert "from 6400 to 2048 rows: 2000 of 2000 tokens keep theirs" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--devices=3"], "batch_size=256 is not divisible by 3 devices"),
        (["--devices=6", "--config.mesh.fsdp=4"], "6 devices cannot be split into mesh.fsdp=4"),
        (["--devices=0"], "--devices must be above 0"),
        (["--tokens=-1"], "--tokens must be above 0"),
        (["--peak-tflops=nan"], "--peak-tflops must be above 0"),
        (["--mfu=40"], "--mfu=40 must be above 0 and at most 1"),
        (["--device=8"], "unknown flag --device"),
        (["--config.model.dmi=8"], "did you mean model.dim"),
        (["--json=/nowhere/plan.json"], "name a file in a directory that exists"),
    ],
)
def test_mistakes_are_one_sentence(flags: list[str], message: str):
    with pytest.raises(UserError, match=message):
        main([f"{PRETRAIN}:smoke" if "--json" in flags[0] else PRETRAIN, *flags])


def test_no_device_is_opened_and_help_needs_no_jax():
    code = f"""
import sys
sys.argv = ["plan"]
from minimind_jax.plan.__main__ import main
try:
    main(["--help"])
except SystemExit:
    print("JAX", "jax" in sys.modules)
main(["{PRETRAIN}", "--devices=8"])
from jax._src import xla_bridge
print("OPENED", xla_bridge.backends_are_initialized())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "JAX False" in done.stdout and "OPENED False" in done.stdout and "--peak-tflops" in done.stdout
