"""Which run a workdir belongs to, and whether a command may continue it."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minimind_jax.config import Config
from minimind_jax.data.open import KIND_OF_STAGE
from minimind_jax.data.store import format_of
from minimind_jax.errors import UserError
from minimind_jax.training import processes
from minimind_jax.workdir import Workdir, read_metrics


def identity(config: Config, data_fingerprint: str, tokenizer_fingerprint: str) -> dict[str, Any]:
    """What makes two commands the same run, by dotted key.

    Left out on purpose, free to change: mesh, accum_steps, compute precision, remat, attention,
    logging, evaluation and saving intervals, workers, trackers, where the data lies, steps and epochs;
    and what the schedule does not use.
    """
    values = config.to_dict()
    parts = {key: values[key] for key in ("stage", "seed", "batch_size", "model", "optim")}
    if values.get(config.stage):
        parts[config.stage] = values[config.stage]
    parts["precision"] = {"params": config.precision.params_dtype}
    parts["data"] = {
        "content": data_fingerprint,
        "format": format_of(KIND_OF_STAGE[config.stage]),
        "max_seq_len": config.data.max_seq_len,
    }
    if config.stage == "pretrain":
        parts["data"]["marks"] = config.data.marks
    parts["tokenizer"] = tokenizer_fingerprint
    parts["init_from"] = str(Path(config.init_from).resolve()) if config.init_from else ""
    if config.optim.schedule != "wsd":
        del parts["optim"]["decay_ratio"]  # runs from before there was wsd do not know it either
    return dict(flatten(parts))


def check_same_run(workdir: Workdir, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The workdir's config if it can be continued, None if it is new.

    Raises:
      UserError: the directory holds something else, or another run (names each key that differs), or one whose data
        another version has read differently.
    """
    if not workdir.path.exists():
        return None
    if not workdir.path.is_dir():
        raise UserError(f"workdir {workdir.path} is a file: choose another with --config.workdir=DIR")
    if not workdir.config.exists():
        killed_at_once = {workdir.lock, *workdir.path.glob("config.json.*.tmp"), *workdir.path.glob(".shared-*")}
        if set(workdir.path.iterdir()) - killed_at_once:
            raise UserError(
                f"workdir {workdir.path} is not empty and holds no run: choose another with --config.workdir=DIR"
            )
        return None
    have = workdir.read_config()
    if "identity" not in have:
        raise UserError(
            f"workdir {workdir.path} holds an imported model, not a run: train from it with "
            f"--config.init_from={workdir.path} and another --config.workdir"
        )
    if not workdir.steps() and not read_metrics(workdir):
        return None  # it failed before its first step (out of memory, say): nothing is lost by starting differently
    keys = sorted(k for k in wanted.keys() | have["identity"].keys() if wanted.get(k) != have["identity"].get(k))
    if "data.format" in keys:
        raise UserError(
            f"workdir {workdir.path} was begun by another version of minimind-jax, which reads data differently: to "
            "continue this very run use that version; its checkpoints still work, for chat, export and evaluation and "
            f"for a new run by --config.init_from={workdir.path} and another --config.workdir"
        )
    if keys:
        shown = "; ".join(f"{k} was {have['identity'].get(k)!r}, now {wanted.get(k)!r}" for k in keys)
        raise UserError(
            f"workdir {workdir.path} holds another run: {shown}. To continue it, set these back; "
            "to start anew, choose another --config.workdir (or delete this one)"
        )
    return have


@contextmanager
def locked(workdir: Workdir) -> Iterator[None]:
    """Keeps a second run out of the workdir; process 0 has the lock, which ends with it, however it ends."""
    if not processes.first():
        yield
        return
    try:
        workdir.path.mkdir(parents=True, exist_ok=True)
        lock = open(workdir.lock, "a+")  # noqa: SIM115 - closed below
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise
        raise UserError(
            f"workdir {workdir.path} cannot be written ({e.strerror}): choose another with --config.workdir=DIR"
        ) from None
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise UserError(
                f"workdir {workdir.path} is in use by another run (process {file.read().strip() or 'unknown'}): "
                "wait for it or choose another --config.workdir"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested dicts by dotted key."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
