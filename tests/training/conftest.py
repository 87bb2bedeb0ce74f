"""What the tests of whole runs share."""

from __future__ import annotations

from pathlib import Path

import pytest
import training_helpers as th


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return th.write_corpus(tmp_path_factory.mktemp("data") / "corpus.jsonl")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Of compiled programs and token stores; the same for all modules."""
    return tmp_path_factory.getbasetemp() / "cache"
