"""Process-wide settings, made before JAX opens its devices."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import jax

from minimind_jax.config import Config, cache_directory
from minimind_jax.training import processes

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def prepare(config: Config) -> None:
    """Sets determinism and the compilation cache. Called by all processes."""
    if config.deterministic:  # the CPU is deterministic anyway
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    compiled = os.environ.get(CACHE_VARIABLE, str(cache_directory() / "xla"))
    jax.config.update("jax_compilation_cache_dir", compiled)
    # JAX writes it in process 0 only. Processes that do not see what it holds would compile, which on GPUs takes all of
    # them (they share the autotuning), while process 0 is done already.
    if processes.count() > 1 and compiled and "://" not in compiled and not processes.share(Path(compiled)):
        jax.config.update("jax_enable_compilation_cache", False)
    # XLA's autotuning caches would make a kernel's choice depend on what ran before.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    # Orbax (and asyncio, which it writes through) logs the whole traceback of an error that it raises as well.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = _report_unraisable


def _report_unraisable(unraisable: Any) -> None:
    # Writes of a save that has failed already (disk full) find their event loop gone; the failure itself is reported.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
