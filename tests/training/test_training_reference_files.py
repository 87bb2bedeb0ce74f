"""Files of reference log-probabilities that were damaged: computed anew, never an error of numpy's."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minimind_jax.data.dpo import MAX_PAIRS
from minimind_jax.training import reference

ROWS: Any = SimpleNamespace(rows_per_epoch=5)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).normal(size=(5, MAX_PAIRS, 2)).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    return tmp_path / "x.npy"


def damaged(content: bytes) -> list[bytes]:
    """Cut, overwritten, and with each bit of the header flipped in turn."""
    rng = random.Random(0)
    zips = [b"PK\x03\x04" + content[4:], b"PK\x05\x06" + bytes(18)]
    whole = [b"", content[:50], content[:-1], bytes(len(content)), rng.randbytes(500), *zips]
    flipped = []
    for position in range(128):
        changed = bytearray(content)
        changed[position] ^= 1 << rng.randrange(8)
        flipped.append(bytes(changed))
    return whole + flipped


def test_what_is_not_whole_is_not_read(file: Path):
    content = file.read_bytes()
    assert reference._read(file, ROWS) is not None
    for number, wrong in enumerate(damaged(content)):
        file.write_bytes(wrong)
        read = reference._read(file, ROWS)
        assert read is None or (number > 6 and read.tobytes() == np.load(file).tobytes())
    file.unlink()
    assert reference._read(file, ROWS) is None


def test_what_is_not_whole_is_started_anew(file: Path):
    content = file.read_bytes()
    for wrong in damaged(content):
        file.write_bytes(wrong)
        values = reference._open_partial(file, ROWS)
        assert values.shape == (5, MAX_PAIRS, 2) and values.dtype == np.float32
    file.write_bytes(content[:-1])
    assert np.isnan(reference._open_partial(file, ROWS)).all()
