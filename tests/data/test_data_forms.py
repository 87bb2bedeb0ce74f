"""Token stores of files in every form: the same as of jsonl."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from data_helpers import ByteTokenizer, save_tokenizer, write_jsonl
from file_forms import FORMS

from minimind_jax.data import build, content, jsonl
from minimind_jax.data.build import open_store
from minimind_jax.data.sources import parse_sources
from minimind_jax.data.store import TokenStore
from minimind_jax.errors import UserError
from minimind_jax.files import open_lines
from minimind_jax.tokenizer import load_tokenizer

ARRAYS = ("tokens", "offsets", "n_bytes", "doc_hash")
RECORDS = [{"text": f"{i} " + "the sea was calm, 潮水退了。" * (i % 7)} for i in range(400)]


def assert_same(store: TokenStore, expected: TokenStore) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(store, name), getattr(expected, name))
    assert (store.meta.n_records, store.meta.n_bad) == (expected.meta.n_records, expected.meta.n_bad)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_tokens(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = open_store(
        write_jsonl(tmp_path / "expected", [r["text"] for r in RECORDS]), ByteTokenizer(), str(tmp_path)
    )
    FORMS[name](tmp_path / name, RECORDS)
    monkeypatch.setattr(content, "CHUNK_BYTES", 1000)
    assert_same(open_store(tmp_path / name, ByteTokenizer(), str(tmp_path / "cache")), expected)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "array.json"])
def test_worker_processes_read_every_form(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(str(save_tokenizer(tmp_path / "tokenizer")))
    FORMS[name](tmp_path / name, [*RECORDS, {"text": ""}])
    alone = open_store(tmp_path / name, tokenizer, str(tmp_path / "alone"), num_workers=1)
    monkeypatch.setattr(build, "MIN_BYTES_FOR_WORKERS", 0)
    monkeypatch.setattr(content, "CHUNK_BYTES", 1000)
    parallel = open_store(tmp_path / name, tokenizer, str(tmp_path / "parallel"), num_workers=2)
    assert_same(parallel, alone)
    assert parallel.meta.bad == alone.meta.bad
    assert alone.meta.bad[0].line == len(RECORDS) + 1


def test_compressing_a_file_keeps_its_identity(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    first = open_store(path, ByteTokenizer(), str(tmp_path / "cache"))
    (tmp_path / "b.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
    assert open_store(tmp_path / "b.gz", ByteTokenizer(), str(tmp_path / "cache")).path == first.path


def test_a_file_that_is_cut_short_leaves_no_store(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    data = gzip.compress(b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS))
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz is cut short: its gzip data has no end"):
        open_store(path, ByteTokenizer(), str(tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_text_is_refused_where_conversations_are_wanted(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Hello.\n\nBye.\n")
    for kind in ("chat", "pairs"):
        with pytest.raises(UserError, match=r"a\.txt is plain text, which has no conversations: .* stage pretrain"):
            open_store(path, ByteTokenizer(), str(tmp_path / "cache"), kind=kind)
    assert open_store(path, ByteTokenizer(), str(tmp_path / "cache")).meta.n_docs == 2


@pytest.mark.parametrize("chunk_bytes", [1, 10, 64, 1000])
def test_a_line_that_is_too_long_is_counted_once(
    chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "CHUNK_BYTES", chunk_bytes)
    for module in (content, jsonl):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 30)
    path = tmp_path / "a.jsonl"
    lines = [
        '{"text": "a"}',
        "x" * 31,
        '{"text": "b"}',
        '{"text": "12345678901234567"}',
        "{" + "y" * 200,
        '{"text": "c"}',
    ]
    for end in ("\n", "\r\n"):
        path.write_bytes((end.join(lines)).encode())
        store = open_store(path, ByteTokenizer(), str(tmp_path / "cache"))
        assert (store.meta.n_docs, store.meta.n_records, [bad.line for bad in store.meta.bad]) == (4, 6, [2, 5])
        assert {bad.reason for bad in store.meta.bad} == {"longer than 0 MiB"}


def test_of_a_line_that_is_too_long_little_is_held(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"text": "a"}\n')
        for _ in range(60):
            file.write(b"x" * 2**20)
        file.write(b'\n{"text": "b"}\n')
    with open_lines(path) as lines:
        chunks = list(content.read_chunks(lines))
    assert sum(n_bytes for _, _, n_bytes in chunks) == path.stat().st_size
    assert max(len(data) for data, _, _ in chunks) < 19 * 2**20
    store = open_store(path, ByteTokenizer(), str(tmp_path / "cache"), num_workers=1)
    assert (store.meta.n_docs, [(bad.line, bad.reason) for bad in store.meta.bad]) == (2, [(2, "longer than 16 MiB")])


# --- Directories --------------------------------------------------------------------------------


def test_a_saved_data_set(tmp_path: Path) -> None:
    saved = datasets.Dataset.from_list(RECORDS).select(range(0, 400, 2))
    saved.save_to_disk(tmp_path / "saved", num_shards=3)
    sources = parse_sources(f"{tmp_path / 'saved'}:2")
    assert [(source.path.suffix, source.weight) for source in sources] == [(".arrow", 2)] * 3
    tokens = [open_store(s.path, ByteTokenizer(), str(tmp_path / "cache")).tokens for s in sources]
    expected = open_store(
        write_jsonl(tmp_path / "a", [r["text"] for r in RECORDS[::2]]), ByteTokenizer(), str(tmp_path / "cache")
    )
    np.testing.assert_array_equal(np.concatenate(tokens), expected.tokens)


def test_a_saved_data_set_of_splits_says_which_there_are(tmp_path: Path) -> None:
    part = datasets.Dataset.from_list(RECORDS[:4])
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"saved holds the data sets test, train: name one, e\.g\. (.*)$") as caught:
        parse_sources(str(tmp_path / "saved"))
    named = str(caught.value).rpartition("e.g. ")[2]
    assert len(parse_sources(named)) == 1


def test_a_directory_of_files_says_how_to_name_them(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz", "README.md"):
        (tmp_path / name).write_bytes(gzip.compress(b"{}"))
    with pytest.raises(UserError, match=r"is a directory: name its files, e\.g\. ") as caught:
        parse_sources(str(tmp_path))
    assert len(parse_sources(str(caught.value).rpartition("e.g. ")[2])) == 2


def test_a_damaged_saved_data_set(tmp_path: Path) -> None:
    for text in ("", "{}", '{"_data_files": 3}', '{"_data_files": [{"filename": "gone.arrow"}]}'):
        (tmp_path / "state.json").write_text(text)
        with pytest.raises(UserError, match=r"state\.json does not name|gone\.arrow does not exist"):
            parse_sources(str(tmp_path))
