"""DPO's reference: log-probabilities of all answers under the weights that training starts from.

They never change, so they are computed once, before the first step, and no second model stays in memory. Of several
processes all compute, process 0 alone looks at the cache and writes; the others read the workdir's copy.

    <cache_dir>/reference/<key>.npy          (n_rows, MAX_PAIRS, 2) float32, shared by all runs of this reference
    <cache_dir>/reference/<key>.partial.npy  NaN in rows that are not computed yet; continued after an interruption
    <workdir>/reference/<rows>.npy           this run's copy, so that it can be continued without `init_from`
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import jax
import numpy as np

from minimind_jax.config import token_cache
from minimind_jax.data import PairRows
from minimind_jax.data.dpo import MAX_PAIRS
from minimind_jax.data.progress import Progress
from minimind_jax.errors import UserError
from minimind_jax.model import Params
from minimind_jax.objectives import Batch
from minimind_jax.objectives.preference import sequence_logprobs
from minimind_jax.training import processes
from minimind_jax.training.job import Job
from minimind_jax.training.layout import ROWS
from minimind_jax.training.mesh import batch_sharding, put_rows, replicated, state_shardings
from minimind_jax.training.step import compute_dtype, make_forward
from minimind_jax.training.vocabulary import load_initial

_FLUSH_SECONDS = 10.0


def attach_reference(job: Job, begun: bool) -> None:
    """Gives the job's rows their `reference`, the log-probabilities under `init_from`.

    Args:
      begun: the workdir has a checkpoint, so its copy is of the same reference.

    Raises:
      UserError: `init_from` cannot be read, or a log-probability is not finite.
    """

    @cache
    def weights() -> tuple[Params, str]:  # read where they are needed, and once
        params = load_initial(job.config, job.tokenizer)
        return params, digest(params)

    for rows in (job.rows, job.val_rows):
        if isinstance(rows, PairRows):
            rows.reference = _reference(job, rows, begun, weights)


def _reference(job: Job, rows: PairRows, begun: bool, weights: Callable[[], tuple[Params, str]]) -> np.ndarray:
    """Log-probabilities (n_rows, MAX_PAIRS, 2) float32 by row of the plan; 0 = no pair."""
    own = job.workdir.path / "reference" / f"{rows.fingerprint[:32]}.npy"
    if not processes.from_first(lambda: begun and _read(own, rows) is not None):
        params, name = weights()
        key = f"1 {name} {rows.fingerprint} {compute_dtype(job.config).name}"
        final = (
            token_cache(job.config.data.cache_dir)
            / "reference"
            / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
        )
        with _locked(final.with_suffix(".lock")):
            if not processes.from_first(lambda: _read(final, rows) is not None):
                _compute(job, rows, params, final)
        if processes.first():
            own.parent.mkdir(exist_ok=True)
            shutil.copyfile(final, own.with_suffix(".tmp"))
            os.replace(own.with_suffix(".tmp"), own)
        processes.barrier()
    stored = _read(own, rows)
    if stored is None:
        raise UserError(f"{own} cannot be read back: are the disks of data.cache_dir and of the workdir sound?")
    return stored


def _compute(job: Job, rows: PairRows, params: Params, final: Path) -> None:
    config, mesh = job.config, job.mesh
    partial = final.with_suffix(".partial.npy")
    values = _open_partial(partial, rows) if processes.first() else None
    first_missing = processes.from_first(lambda: _first_missing(values))
    missing = np.arange(first_missing, rows.rows_per_epoch)
    n = config.batch_size // config.accum_steps
    shardings = state_shardings(mesh, config.model, params)
    on_mesh = jax.tree.map(lambda p, s: jax.make_array_from_callback(p.shape, s, lambda i: p[i]), params, shardings)
    layout = job.layout
    forward = make_forward(config, compute_dtype(config), layout)

    def score_rows(params: Params, batch: Batch) -> jax.Array:
        return sequence_logprobs(forward, layout.gather_ends(params), jax.tree.map(lambda x: x[0], batch))

    score = jax.jit(layout.run(score_rows, ROWS), out_shardings=replicated(mesh))
    progress = Progress("log-probabilities of the reference", len(missing))
    flushed = time.monotonic()
    for start in range(0, len(missing), n):
        chosen = missing[start : start + n]
        ids = np.full(n, -1, np.int64)
        ids[: len(chosen)] = chosen
        batch = put_rows(rows.plan_batch, ids[None], batch_sharding(mesh))
        logps = np.asarray(score(on_mesh, batch), np.float32)[: len(chosen)]
        if not np.isfinite(logps).all():
            raise UserError(f"log-probabilities of {config.init_from} are not finite: its weights are broken")
        progress.update(start + len(chosen))
        if values is None:
            continue
        values[chosen] = logps
        if time.monotonic() - flushed > _FLUSH_SECONDS:
            values.flush()
            flushed = time.monotonic()
    progress.close()
    if values is not None:
        values.flush()
        os.replace(partial, final)


def _first_missing(values: np.ndarray | None) -> int:
    """The first row that is not computed yet: rows are computed in their order."""
    assert values is not None
    gaps = np.flatnonzero(np.isnan(values).any(axis=(1, 2)))
    return int(gaps[0]) if len(gaps) else len(values)


def _open_partial(path: Path, rows: PairRows) -> np.memmap:
    """The array that is being filled, continued where it is whole."""
    shape = (rows.rows_per_epoch, MAX_PAIRS, 2)
    try:
        found = np.lib.format.open_memmap(path, mode="r")  # "r+" fills up a file that was cut short, with zeros
        if found.shape == shape and found.dtype == np.float32:
            return np.lib.format.open_memmap(path, mode="r+")
    except Exception:  # not there, or damaged: numpy then raises whatever its header happens to lead to
        pass
    fresh = path.with_suffix(".tmp")
    values = np.lib.format.open_memmap(fresh, mode="w+", dtype=np.float32, shape=shape)
    values[:] = np.nan
    values.flush()
    os.replace(fresh, path)
    return values


def _read(path: Path, rows: PairRows) -> np.ndarray | None:
    try:
        values = np.load(path)
    except Exception:  # as in `_open_partial`
        return None
    if not isinstance(values, np.ndarray):  # it begins like a zip file
        return None
    whole = values.shape == (rows.rows_per_epoch, MAX_PAIRS, 2) and np.isfinite(values).all()
    return values if whole else None


def digest(params: Params) -> str:
    """Identifies weights by their content."""
    content = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        content.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        content.update(np.ascontiguousarray(leaf).data)
    return content.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One run at a time fills a partial file; the kernel releases the lock when its process ends."""
    if not processes.first():
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
