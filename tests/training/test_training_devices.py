"""Devices and accumulation decide how a step is computed, never what: the same rows, the same losses."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import training_helpers as th
from safetensors.numpy import load_file

from minimind_jax.config import DataConfig, MeshConfig
from minimind_jax.data import open_pretrain, step_row_ids
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.training import loop
from minimind_jax.training.mesh import batch_sharding, make_mesh, put_batch

STEPS, BATCH_SIZE = 10, 32
LAYOUTS = [(devices, accum_steps) for devices in (1, 2, 4, 8) for accum_steps in (1, 2, 4)]
FAST = [(4, 2)]  # beside (1, 1), which all are compared with

Batches = dict[int, dict[str, np.ndarray]]
Train = Callable[..., tuple[Path, Batches]]


@pytest.fixture(scope="module")
def train(tmp_path_factory, corpus) -> Train:
    """train(devices, accum_steps) -> the workdir of a run, and its batches as (BATCH_SIZE, T) in global order."""
    make_batch = loop.make_batch

    @functools.cache
    def train(devices: int, accum_steps: int, attempt: int = 0) -> tuple[Path, Batches]:
        batches: Batches = {}

        def recording(job, step):
            batch = make_batch(job, step)
            assert len(batch["tokens"].sharding.device_set) == devices
            assert batch["tokens"].shape == (accum_steps, BATCH_SIZE // accum_steps, th.SEQ_LEN)
            batches[step] = {key: np.asarray(value).reshape(BATCH_SIZE, -1) for key, value in batch.items()}
            return batch

        workdir = tmp_path_factory.mktemp("run") / "run"
        layout = {"mesh__data": devices, "accum_steps": accum_steps, "batch_size": BATCH_SIZE}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
            patch.setattr(loop, "make_batch", recording)
            th.run_here(*th.overrides(workdir, corpus, steps=STEPS, save_every=0, **layout))
        return workdir, batches

    return train


class Numbers:
    """Rows that hold nothing but their own number."""

    rows_per_epoch, seq_len, fingerprint = 100, 2, ""

    def batch(self, row_ids: np.ndarray) -> dict[str, np.ndarray]:
        number = np.repeat(row_ids[:, None], self.seq_len, axis=1).astype(np.int32)
        names = ("tokens", "targets", "segment_ids", "positions")
        return {**{name: number for name in names}, "target_mask": number >= 0}


@pytest.mark.parametrize(("devices", "accum_steps"), LAYOUTS)
def test_row_numbers_in_global_order(devices, accum_steps):
    sharding = batch_sharding(make_mesh(MeshConfig(data=devices)))
    for step in (0, 1, 7):
        ids = step_row_ids(step, BATCH_SIZE)
        assert ids.tolist() == list(range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE))
        batch = put_batch(Numbers(), ids.reshape(accum_steps, -1), sharding)
        assert len(batch["tokens"].addressable_shards) == devices
        assert np.asarray(batch["tokens"])[..., 0].reshape(-1).tolist() == ids.tolist()


@pytest.mark.parametrize(
    ("devices", "accum_steps"),
    [pytest.param(*layout, marks=() if layout in FAST else pytest.mark.slow) for layout in LAYOUTS if layout != (1, 1)],
)
def test_same_batches_and_losses(train, devices, accum_steps):
    reference, reference_batches = train(1, 1)
    workdir, batches = train(devices, accum_steps)
    assert batches.keys() == reference_batches.keys() == set(range(STEPS))
    for step, batch in batches.items():
        for key, values in batch.items():
            np.testing.assert_array_equal(values, reference_batches[step][key], err_msg=f"{key} of step {step}")
    ours, theirs = th.metrics(workdir), th.metrics(reference)
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    for key in ("loss", "grad_norm"):
        np.testing.assert_allclose([line[key] for line in ours], [line[key] for line in theirs], rtol=1e-5)
    for key in ("lr", "target_tokens", "skipped"):
        assert [line[key] for line in ours] == [line[key] for line in theirs]


def test_batches_are_the_rows_of_the_data(train, corpus):
    """Step s sees rows [s B, (s + 1) B), whatever the loop's feeding thread did; the run goes into a second epoch."""
    data = DataConfig(path=str(corpus), cache_dir=str(corpus.parent / "tokens"), max_seq_len=th.SEQ_LEN)
    rows, _ = open_pretrain(data, load_tokenizer(""), seed=0)
    assert rows.rows_per_epoch < STEPS * BATCH_SIZE
    _, batches = train(4, 2)
    for step, batch in batches.items():
        expected = rows.batch(np.arange(step * BATCH_SIZE, (step + 1) * BATCH_SIZE))
        for key, values in batch.items():
            np.testing.assert_array_equal(values, expected[key])


def test_repeated_run_is_bit_identical(train):
    (first, _), (second, _) = train(4, 2), train(4, 2, attempt=1)
    assert first != second
    assert th.losses(first) == th.losses(second)
    th.assert_same_checkpoint(first, second, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "then",
    [
        {"mesh__data": 2, "accum_steps": 4},
        {"mesh__data": 2, "mesh__fsdp": 4},
    ],
)
def test_resume_on_another_mesh(train, tmp_path, corpus, monkeypatch, capsys, then):
    """Half the run on 8 devices, half on another layout; fsdp's parameters and moments are shards of the same."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    keys = {"batch_size": BATCH_SIZE, "save_every": 0, "optim__schedule": "constant"}  # lr whatever the run's end

    def run(name: str, steps: int, **layout: int) -> None:
        th.run_here(*th.overrides(tmp_path / name, corpus, steps=steps, **keys, **layout))

    run("whole", STEPS, mesh__data=8)
    run("halves", 5, mesh__data=8)
    capsys.readouterr()
    run("halves", STEPS, **then)
    assert th.resumed_from(capsys.readouterr().out) == 5
    whole, halves = np.array(th.losses(tmp_path / "whole")), np.array(th.losses(tmp_path / "halves"))
    np.testing.assert_array_equal(halves[:5], whole[:5])
    np.testing.assert_allclose(halves, whole, rtol=1e-5)


@pytest.mark.slow
def test_one_device_exports_what_eight_have_sharded(tmp_path, corpus, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    layout = {"mesh__data": 2, "mesh__fsdp": 4, "batch_size": 8}
    th.run_here(*th.overrides(tmp_path / "run", corpus, steps=2, save_every=0, **layout))
    command = [sys.executable, "-m", "convert.to_hf", "--model", str(tmp_path / "run"), "--out", str(tmp_path / "hf")]
    subprocess.run(command, check=True, cwd=th.REPOSITORY, env={**os.environ, "XLA_FLAGS": ""})
    exported = load_file(tmp_path / "hf" / "model.safetensors")
    saved = th.checkpoint(tmp_path / "run", 2)
    np.testing.assert_array_equal(exported["model.embed_tokens.weight"], saved["params['embed']"])
    up = saved["params['blocks']['mlp']['up']"]  # (L, D, F); PyTorch's linear layers are (out, in)
    for layer, weights in enumerate(up):
        np.testing.assert_array_equal(exported[f"model.layers.{layer}.mlp.up_proj.weight"], weights.T)
