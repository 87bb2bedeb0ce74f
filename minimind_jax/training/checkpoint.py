"""Checkpoints: Orbax, asynchronous, atomic. Parameters and optimiser are separate items.

checkpoints/STEP/params      read by convert, chat, evaluate; see minimind_jax/workdir.py
                /opt_state   {optimizer, step, skipped}
                /meta        JSON: what the closing summary and a resumed run need besides
                /checksums.sha256    see minimind_jax/checkpoint_files.py; part of what is committed
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import serialization
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, CustomSteps, LatestN, PreservationPolicy

from minimind_jax import checkpoint_files
from minimind_jax.checkpoint_files import DamagedCheckpointError
from minimind_jax.errors import UserError
from minimind_jax.training import processes
from minimind_jax.training.step import TrainState
from minimind_jax.workdir import Workdir

ITEMS = ("params", "opt_state", "meta")


def newest_readable(workdir: Workdir) -> int:
    """The step to continue from, 0 where there is no checkpoint; says so, and moves newer ones that are damaged aside.

    Raises UserError if there are checkpoints and none can be read; nothing is moved then.
    """
    damaged: dict[int, DamagedCheckpointError] = {}
    for step in reversed(workdir.steps()):
        try:
            checkpoint_files.check(workdir.checkpoint(step), ITEMS)
        except DamagedCheckpointError as e:
            damaged[step] = e
            continue
        for newer, problem in damaged.items():
            place = workdir.set_aside(newer)
            print(f"warning: {problem}: it is kept as {place}, the run continues from step {step}", file=sys.stderr)
        return step
    if damaged:
        more = f", and so are all others ({', '.join(map(str, workdir.steps()[:-1]))})" if len(damaged) > 1 else ""
        raise UserError(
            f"{damaged[max(damaged)]}{more}: put a sound copy in its place, or start anew in another --config.workdir"
        )
    return 0


class _KeptSteps(PreservationPolicy):
    """Keeps the checkpoints of `steps`, which may change."""

    def __init__(self) -> None:
        self.steps: set[int] = set()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [checkpoint.step in self.steps for checkpoint in checkpoints]


class Checkpointer:
    """Keeps the last `keep` checkpoints, and besides those of step `landmark` and of `keep_step`, if there are such."""

    def __init__(self, workdir: Workdir, keep: int, landmark: int | None = None):
        self._workdir = workdir
        self._saving = -1
        landmarks = [] if landmark is None else [landmark]
        self._kept = _KeptSteps()
        # A save that was killed leaves a temporary directory as large as a checkpoint.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(keep), CustomSteps(landmarks), self._kept]),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._add_checksums),
        )
        self._manager = ocp.CheckpointManager(workdir.checkpoints.absolute(), options=options)

    def keep_step(self, step: int) -> None:
        """From the next save on, the checkpoint of this step is kept, and that of the step named before no longer."""
        self._kept.steps = {step}

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, meta: dict[str, Any]) -> None:
        """Starts saving and returns; the directory appears under its final name only when complete.

        Raises:
          OSError: the disk is full (ENOSPC), or whatever went wrong with the save before.
        """
        params, opt_state = _items(state)
        items = {"params": ocp.args.StandardSave(params), "opt_state": ocp.args.StandardSave(opt_state)}
        self.wait()
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        if shutil.disk_usage(self._workdir.path).free < size:  # known now, it is better than half a checkpoint later
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._workdir.checkpoints))
        self._saving = step
        with _os_errors(self._workdir):
            self._manager.save(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta)))

    def restore(self, abstract_state: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        """Reads a checkpoint onto the devices that `abstract_state`'s shardings name, whatever wrote it.

        Raises UserError if it is not of this state; damage is what `newest_readable` looks for, before.
        """
        params, opt_state = _items(abstract_state)
        items = {"params": ocp.args.StandardRestore(params), "opt_state": ocp.args.StandardRestore(opt_state)}
        with checkpoint_files.reading(self._workdir.checkpoint(step)):
            read = self._manager.restore(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonRestore()))
        optimizer = serialization.from_state_dict(abstract_state["opt_state"], read["opt_state"]["optimizer"])
        counters = {key: read["opt_state"][key] for key in ("step", "skipped")}
        return {"params": read["params"], "opt_state": optimizer, **counters}, read["meta"]

    def _add_checksums(self) -> None:
        """Called when all is written, before the directory gets its final name."""
        if processes.first():
            for directory in self._workdir.checkpoints.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
                checkpoint_files.write_checksums(directory)

    def wait(self) -> None:
        """Blocks until the last save is committed; raises what went wrong with it."""
        with _os_errors(self._workdir):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits like `wait`, then ends Orbax's threads."""
        with _os_errors(self._workdir):
            self._manager.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        # After an error, other processes do not take part in finishing a save: it would wait for them in vain.
        if error is None or processes.count() == 1:
            self.close()


@contextlib.contextmanager
def _os_errors(workdir: Workdir) -> Iterator[None]:
    """Gives errors of the operating system (a full disk) their type back: tensorstore raises ValueError for them."""
    try:
        yield
        return
    except ValueError as e:
        code = re.search(r"os_error_code='(\d+)'", str(e))
        if not code:
            raise
    # Out of the handler: as its context the old error would keep Orbax's coroutines alive until Python shuts down.
    raise OSError(int(code[1]), os.strerror(int(code[1])), str(workdir.checkpoints))


def _items(state: TrainState) -> tuple[Any, Any]:
    # Plain dicts: paths on disk carry no class of Optax's, so that its refactorings cannot break old checkpoints.
    optimizer = serialization.to_state_dict(state["opt_state"])
    return state["params"], {"optimizer": optimizer, "step": state["step"], "skipped": state["skipped"]}
