"""Checkpoints: bit-identical, readable on any mesh and without the optimiser, under pinned names."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from step_helpers import MODEL, assert_identical, compiled, snapshot

from minimind_jax import checkpoint_files
from minimind_jax.errors import UserError
from minimind_jax.training.checkpoint import Checkpointer
from minimind_jax.training.job import make_batch
from minimind_jax.workdir import Workdir, read_params

META = {"before": {"val_loss": 4.5}}

PARAMS = [
    "blocks.attn.k",
    "blocks.attn.o",
    "blocks.attn.q",
    "blocks.attn.v",
    "blocks.attn_norm",
    "blocks.mlp.down",
    "blocks.mlp.gate",
    "blocks.mlp.up",
    "blocks.mlp_norm",
    "embed",
    "final_norm",
]
# What is on users' disks. A change here makes their checkpoints unreadable.
GOLDEN = {
    "params": PARAMS,
    "opt_state": [
        "optimizer.1.count",
        *(f"optimizer.1.mu.{name}" for name in PARAMS),
        *(f"optimizer.1.nu.{name}" for name in PARAMS),
        "skipped",
        "step",
    ],
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workdir, dict]:
    """A workdir with the checkpoint of step 2, and the state as it was then, in host memory."""
    workdir, run = Workdir(tmp_path_factory.mktemp("run")), compiled(4, 2)
    state = run.state()
    for step in range(2):
        state, _ = run.train_step(state, make_batch(run.job, step))
    then = snapshot(state)
    with contextlib.closing(Checkpointer(workdir, keep=2)) as checkpointer:
        checkpointer.save(state, 2, META)
        # Saving goes on behind the loop's back: donated buffers must not reach the disk.
        for step in range(2, 6):
            state, _ = run.train_step(state, make_batch(run.job, step))
        checkpointer.wait()
        assert checkpointer.latest_step() == 2
    assert np.any(np.asarray(state["params"]["embed"]) != then["params"]["embed"])
    return workdir, then


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(4, 2, 1), (8, 1, 1), (1, 1, 2)])
def test_the_state_is_restored_bit_for_bit_on_any_mesh(saved: tuple[Workdir, dict], mesh: tuple[int, int, int]):
    workdir, then = saved
    run = compiled(*mesh)
    with contextlib.closing(Checkpointer(workdir, keep=2)) as checkpointer:
        state, meta = checkpointer.restore(run.abstract, 2)
    assert meta == META
    assert_identical(state, then)
    for leaf, want in zip(jax.tree.leaves(state), jax.tree.leaves(run.abstract), strict=True):
        assert leaf.sharding.is_equivalent_to(want.sharding, leaf.ndim)
    state, _ = run.train_step(state, make_batch(run.job, 2))  # it fits the compiled step
    assert int(state["step"]) == 3


def test_parameters_are_read_without_the_optimiser(saved: tuple[Workdir, dict], tmp_path: Path):
    workdir, then = saved
    copy = Workdir(tmp_path)
    target = copy.checkpoints / "2" / "params"
    target.parent.mkdir(parents=True)
    target.symlink_to(workdir.checkpoints / "2" / "params")
    params = read_params(copy, 2, MODEL)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(params))
    assert_identical(params, then["params"])


def names_on_disk(workdir: Workdir, step: int, item: str) -> list[str]:
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.metadata(workdir.checkpoints / str(step) / item).item_metadata.tree
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return sorted(jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves)


@pytest.mark.parametrize("item", GOLDEN)
def test_names_on_disk_are_pinned(saved: tuple[Workdir, dict], item: str):
    assert names_on_disk(saved[0], 2, item) == GOLDEN[item]


def test_the_oldest_checkpoints_go(tmp_path: Path):
    workdir, state = Workdir(tmp_path), compiled(1, 1, 2).state()
    with contextlib.closing(Checkpointer(workdir, keep=2)) as checkpointer:
        assert checkpointer.latest_step() is None
        for step in (5, 10, 15):
            checkpointer.save(state, step, {})
            checkpointer.wait()
    assert workdir.steps() == [10, 15]


def test_a_landmark_stays(tmp_path: Path):
    workdir, state = Workdir(tmp_path), compiled(1, 1, 2).state()
    with contextlib.closing(Checkpointer(workdir, keep=2, landmark=5)) as checkpointer:
        for step in (4, 5, 10, 15):
            checkpointer.save(state, step, {})
            checkpointer.wait()
    assert workdir.steps() == [5, 10, 15]


def test_a_disk_that_fills_up_with_the_checksums_leaves_no_checkpoint(tmp_path: Path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    workdir, state = Workdir(tmp_path), compiled(1, 1, 2).state()
    with contextlib.closing(Checkpointer(workdir, keep=2)) as checkpointer:
        checkpointer.save(state, 5, {})
        checkpointer.wait()
        monkeypatch.setattr(checkpoint_files, "write_checksums", full)
        checkpointer.save(state, 10, {})
        with pytest.raises(OSError) as caught:
            checkpointer.wait()
    assert caught.value.errno == errno.ENOSPC and workdir.steps() == [5]


def test_a_checkpoint_of_another_model_is_told(saved: tuple[Workdir, dict], tmp_path: Path):
    workdir, run = saved[0], compiled(1, 1, 2)
    abstract = dict(run.abstract, params={"another": run.abstract["params"]["embed"]})
    with (
        contextlib.closing(Checkpointer(workdir, keep=2)) as checkpointer,
        pytest.raises(UserError, match=r"checkpoints/2 is whole, but not of the model that .*config\.json"),
    ):
        checkpointer.restore(abstract, 2)
