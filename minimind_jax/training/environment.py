"""Process-wide settings, made before JAX opens its devices."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import jax

from minimind_jax.config import Config, cache_directory
from minimind_jax.errors import UserError


def prepare(config: Config) -> None:
    """Sets determinism, the compilation cache and, for several processes, `jax.distributed`."""
    if config.deterministic:  # the CPU is deterministic anyway
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))
    # XLA's autotuning caches would make a kernel's choice depend on what ran before.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    # Orbax (and asyncio, which it writes through) logs the whole traceback of an error that it raises as well.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = _report_unraisable
    _join_other_processes(config)


def _report_unraisable(unraisable: Any) -> None:
    # Writes of a save that has failed already (disk full) find their event loop gone; the failure itself is reported.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _join_other_processes(config: Config) -> None:
    d = config.distributed
    if d.coordinator:
        if d.num_processes < 1 or not 0 <= d.process_id < d.num_processes:
            raise UserError(
                f"distributed.num_processes={d.num_processes} and distributed.process_id={d.process_id} do not fit "
                "together: with a coordinator, set both, with 0 <= process_id < num_processes"
            )
        jax.distributed.initialize(d.coordinator, d.num_processes, d.process_id)
    elif int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        jax.distributed.initialize()  # reads the cluster's own variables
