from __future__ import annotations

import os
from pathlib import Path

import pytest

from minimind_jax.data.sources import Source, parse_sources
from minimind_jax.errors import UserError


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("b.jsonl", "a.jsonl", "c.txt", "sub/d.jsonl", "e:2", "f[1].jsonl"):
        (tmp_path / name).write_text("x")
    (tmp_path / "empty.txt").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("a.jsonl", [("a.jsonl", 1)]),
        ("b.jsonl , a.jsonl:3,", [("b.jsonl", 1), ("a.jsonl", 3)]),
        ("[ab].jsonl:2,c.txt", [("a.jsonl", 2), ("b.jsonl", 2), ("c.txt", 1)]),
        ("**/d.jsonl", [("sub/d.jsonl", 1)]),
        ("e:2", [("e:2", 1)]),  # a file of that very name
        ("e:2:2", [("e:2", 2)]),
        ("f[1].jsonl", [("f[1].jsonl", 1)]),  # likewise, although it looks like a glob
    ],
)
def test_files_globs_and_weights(tree: Path, spec: str, expected: list[tuple[str, int]]) -> None:
    assert parse_sources(spec) == [Source(Path(name), weight) for name, weight in expected]


def test_absolute_paths_and_home(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree))
    assert parse_sources("~/a.jsonl:2") == [Source(tree / "a.jsonl", 2)]
    assert parse_sources("~/[ab].jsonl") == [Source(tree / "a.jsonl"), Source(tree / "b.jsonl")]
    assert parse_sources(f"{tree}/sub/*.jsonl") == [Source(tree / "sub/d.jsonl")]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "names no file"),
        (" , ", "names no file"),
        ("nothing.jsonl", r"data\.path: nothing\.jsonl does not exist"),
        ("no*.jsonl", r"no file matches no\*\.jsonl"),
        ("sub*", r"no file matches sub\*"),  # only a directory
        ("sub", "sub is a directory.*sub/\\*.jsonl"),
        ("empty.txt", "empty.txt is empty"),
        ("*.txt", "empty.txt is empty"),
        ("a.jsonl:0", "weight '0' is not a whole number"),
        ("a.jsonl:-1", "weight '-1'"),
        ("a.jsonl:1.5", "weight '1.5'"),
        ("a.jsonl:two", "weight 'two'"),
        ("a.jsonl:", "weight ''"),
        ("a.jsonl,*.jsonl", "names a.jsonl more than once"),
    ],
)
def test_errors_name_the_entry(tree: Path, spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_sources(spec)


def test_not_a_regular_file(tree: Path) -> None:
    os.mkfifo("pipe")
    with pytest.raises(UserError, match=r"data\.val_path: pipe is not a regular file"):
        parse_sources("pipe", "data.val_path")
