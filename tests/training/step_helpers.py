"""A network, rows and a job of the smallest size."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from minimind_jax.config import Config, DataConfig, MeshConfig, ModelConfig, OptimConfig
from minimind_jax.objectives import language_modelling
from minimind_jax.training.checkpoint import Checkpointer
from minimind_jax.training.console import TrainingConsole
from minimind_jax.training.job import Job, compile_train_step, initial_state
from minimind_jax.training.mesh import make_mesh, state_shardings
from minimind_jax.training.step import TrainState, TrainStep
from minimind_jax.workdir import Workdir

T = 16
MODEL = ModelConfig(dim=16, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=32, vocab_size=64, max_seq_len=64)


@dataclasses.dataclass
class RandomRows:
    """Two documents and some padding in each row, a pure function of the row's id."""

    rows_per_epoch: int = 1000
    seq_len: int = T
    fingerprint: str = "random"
    n_docs: int = 2000
    n_tokens: int = 1000 * T
    n_targets: int = 900 * T
    n_bytes: int = 1

    def batch(self, row_ids: np.ndarray) -> dict[str, np.ndarray]:
        rows = [self._row(int(row_id)) for row_id in row_ids]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def _row(self, row_id: int) -> dict[str, np.ndarray]:
        names = ("tokens", "targets", "segment_ids", "positions")
        row = {name: np.zeros(self.seq_len, np.int32) for name in names}
        row["target_mask"] = np.zeros(self.seq_len, bool)
        if row_id < 0:
            return row
        rng = np.random.default_rng(row_id)
        first, end = int(rng.integers(2, 8)), int(rng.integers(9, self.seq_len + 1))
        for segment, (start, stop) in enumerate([(0, first), (first, end)], 1):
            text = rng.integers(1, MODEL.vocab_size, stop - start)
            row["tokens"][start:stop] = text
            row["targets"][start : stop - 1] = text[1:]
            row["target_mask"][start : stop - 1] = True
            row["segment_ids"][start:stop] = segment
            row["positions"][start:stop] = np.arange(stop - start)
        return row


def make_config(**changes: Any) -> Config:
    values: dict[str, Any] = {
        "stage": "pretrain",
        "workdir": "out",
        "model": MODEL,
        "data": DataConfig(path="a.jsonl", max_seq_len=T),
        "optim": OptimConfig(lr=1e-2, warmup_steps=2),
        "steps": 10,
        "batch_size": 8,
    }
    return Config(**values | changes)


def make_job(workdir: Path, mesh: MeshConfig | None = None, **changes: Any) -> Job:
    """A job that trains on `RandomRows`; it has no tokenizer, which only samples need."""
    config = make_config(workdir=str(workdir), mesh=mesh or MeshConfig(data=1), **changes)
    return Job(
        config=config,
        mesh=make_mesh(config.mesh),
        rows=RandomRows(),
        val_rows=None,
        objective=language_modelling,
        tokenizer=None,  # type: ignore[arg-type]
        workdir=Workdir(workdir),
        total_steps=config.steps,
        total_rows=None,
        total_steps_before=config.steps,
    )


@dataclasses.dataclass(frozen=True)
class Compiled:
    job: Job
    train_step: TrainStep
    abstract: TrainState  # with shardings
    initial: TrainState  # in host memory

    def state(self) -> TrainState:
        """A fresh state on the devices, every time the same."""
        return jax.tree.map(lambda x, a: jax.device_put(x.copy(), a.sharding), self.initial, self.abstract)


def fresh_state(job: Job) -> TrainState:
    with contextlib.closing(Checkpointer(job.workdir, 1)) as checkpointer:
        state, notes = initial_state(job, checkpointer, 0)
    assert notes == {}
    return state


@functools.cache
def compiled(data: int, fsdp: int, accum_steps: int = 1, optimizer: str = "adamw") -> Compiled:
    """The job on a mesh, compiled once for all tests."""
    optim = OptimConfig(name=optimizer, lr=1e-2, warmup_steps=2)
    with tempfile.TemporaryDirectory() as directory:
        job = make_job(Path(directory), MeshConfig(data, fsdp), accum_steps=accum_steps, optim=optim)
        initial = snapshot(fresh_state(job)) if job.mesh.size == 1 else compiled(1, 1, 2, optimizer).initial
    shardings = state_shardings(job.mesh, MODEL, initial)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), initial, shardings)
    train_step = compile_train_step(job, jax.device_put(initial, shardings), quiet_console())
    return Compiled(job, train_step, abstract, initial)


def quiet_console() -> TrainingConsole:
    return TrainingConsole(total_steps=10, start_step=0, quiet=True)


def snapshot(tree: Any) -> Any:
    """A copy in host memory that outlives donation."""
    return jax.tree.map(lambda x: np.array(x), tree)


def assert_identical(a: Any, b: Any) -> None:
    """The same tree, bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for ours, theirs in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()
