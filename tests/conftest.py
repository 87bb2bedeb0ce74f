"""Shared by all tests: a CPU with 8 virtual devices, and the optional real data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before JAX opens its devices.
os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile a lot and compute little: without LLVM's optimisations they take half the time.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0")

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    path = REPOSITORY.parent / "shared" / "data"
    if not (path / "pretrain.jsonl").is_file():
        pytest.skip(f"needs the real sample data in {path}, which is not part of the project")
    return path


@pytest.fixture(scope="session", autouse=True)
def no_transformers_check() -> Iterator[None]:
    """Exports do not ask transformers, which takes seconds; tests/convert/test_convert_transformers.py has it ask."""
    from convert import transformers_check

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers_check, "unavailable", lambda: "off in tests")
        yield
