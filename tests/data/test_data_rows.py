"""Rows against a slow reference that concatenates documents token by token."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from data_helpers import ByteTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind_jax.data.rows import PretrainRows, count_rows, permutation, step_row_ids
from minimind_jax.data.splits import Part
from minimind_jax.data.store import StoreMeta, TokenStore

Docs = list[list[int]]


def make_store(docs: Docs) -> TokenStore:
    """A store in memory; tokens are ours to choose, so that each one is unique."""
    lengths = [len(doc) for doc in docs]
    meta = StoreMeta("key", "text", "hash", "tok", 2**16, len(docs), sum(lengths), len(docs), 0, 0, (), {})
    return TokenStore(
        path=Path(),
        meta=meta,
        tokens=np.array(list(itertools.chain(*docs)), np.uint16),
        flags=np.zeros(0, np.uint8),
        offsets=np.cumsum([0, *lengths], dtype=np.uint64),
        n_bytes=np.array([n - 2 for n in lengths], np.uint32),
        doc_hash=np.zeros(len(docs), np.uint64),
    )


def reference_rows(docs: Docs, T: int) -> list[dict[str, list[int]]]:
    """Documents in order, concatenated and cut, one token after the other."""
    stream = []  # (token, target or None, document, place of the token in it)
    for d, doc in enumerate(docs):
        for i, token in enumerate(doc):
            stream.append((token, doc[i + 1] if i + 1 < len(doc) else None, d))
    rows = []
    for start in range(0, len(stream), T):
        row: dict[str, list[int]] = {k: [] for k in ("tokens", "targets", "segment_ids", "positions", "target_mask")}
        segment, position, previous = 0, 0, None
        for token, target, d in stream[start : start + T]:
            if d != previous:
                segment, position, previous = segment + 1, 0, d
            row["tokens"].append(token)
            row["targets"].append(0 if target is None else target)
            row["segment_ids"].append(segment)
            row["positions"].append(position)
            row["target_mask"].append(target is not None)
            position += 1
        rows.append({name: values + [0] * (T - len(values)) for name, values in row.items()})
    return rows


def unique_docs(lengths: list[int], first: int = 3) -> Docs:
    counter = itertools.count(first)
    return [[1, *(next(counter) for _ in range(n - 2)), 2] for n in lengths]


lengths_strategy = st.lists(st.integers(3, 40), min_size=1, max_size=12)


@st.composite
def sources(draw: st.DrawFn) -> tuple[list[Part], Docs]:
    """Up to three stores with weights, some documents left out, and the documents of an epoch in file order."""
    parts, docs = [], []
    for s in range(draw(st.integers(1, 3))):
        store_docs = unique_docs(draw(lengths_strategy), 3 + 10_000 * s)
        chosen = draw(st.lists(st.integers(0, len(store_docs) - 1), unique=True, min_size=s == 0, max_size=12))
        weight = draw(st.integers(1, 3))
        parts.append(Part(make_store(store_docs), np.sort(np.array(chosen, np.int64)), weight))
        docs += [store_docs[d] for d in sorted(chosen)] * weight
    return parts, docs


@settings(max_examples=200, deadline=None)
@given(sources(), st.integers(2, 50), st.integers(0, 2**32), st.integers(0, 3), st.data())
def test_rows_equal_the_reference(
    source: tuple[list[Part], Docs], T: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    parts, docs = source
    rows = PretrainRows(parts, T, "f", seed)
    shuffled = [docs[i] for i in permutation(len(docs), seed, epoch)]
    expected = reference_rows(shuffled, T)
    assert rows.rows_per_epoch == len(expected)
    assert (rows.n_docs, rows.n_tokens) == (len(docs), sum(map(len, docs)))
    assert rows.n_bytes == sum(len(doc) - 2 for doc in docs)
    index = data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=10))
    batch = rows.batch(epoch * rows.rows_per_epoch + np.array(index))
    for name, values in batch.items():
        assert values.dtype == (bool if name == "target_mask" else np.int32)
        np.testing.assert_array_equal(values, [expected[i][name] for i in index], err_msg=name)


@settings(max_examples=100, deadline=None)
@given(sources(), st.integers(2, 50), st.integers(0, 2**32))
def test_every_token_but_the_first_is_a_target_once_per_epoch(
    source: tuple[list[Part], Docs], T: int, seed: int
) -> None:
    parts, docs = source
    rows = PretrainRows(parts, T, "f", seed)
    batch = rows.batch(np.arange(rows.rows_per_epoch))
    targets = batch["targets"][batch["target_mask"]]
    assert sorted(targets.tolist()) == sorted(itertools.chain(*(doc[1:] for doc in docs)))
    assert len(targets) == rows.n_targets
    real = batch["segment_ids"] > 0
    assert sorted(batch["tokens"][real].tolist()) == sorted(itertools.chain(*docs))
    assert real[:-1].all()  # only the last row has padding
    # Where the next token stands in the same segment, it is the target.
    same = batch["segment_ids"][:, 1:] == batch["segment_ids"][:, :-1]
    inner = same & real[:, 1:]
    np.testing.assert_array_equal(batch["targets"][:, :-1][inner], batch["tokens"][:, 1:][inner])


@settings(max_examples=100, deadline=None)
@given(sources(), st.integers(2, 30), st.integers(0, 99), st.data())
def test_a_batch_equals_its_rows_however_they_are_grouped(
    source: tuple[list[Part], Docs], T: int, seed: int, data: st.DataObject
) -> None:
    rows = PretrainRows(source[0], T, "f", seed)
    ids = np.array(data.draw(st.lists(st.integers(-2, 4 * rows.rows_per_epoch), min_size=1, max_size=12)), np.int64)
    whole = rows.batch(ids)
    fresh = PretrainRows(source[0], T, "f", seed)  # no epoch laid out yet
    cut = data.draw(st.integers(0, len(ids)))
    for name in whole:
        single = [fresh.batch(ids[i : i + 1])[name][0] for i in reversed(range(len(ids)))][::-1]
        np.testing.assert_array_equal(whole[name], single)
        parts = [fresh.batch(ids[:cut])[name], fresh.batch(ids[cut:])[name]]
        np.testing.assert_array_equal(whole[name], np.concatenate(parts))
        assert not whole[name][ids < 0].any()


def test_epochs_and_seeds_differ_and_the_order_is_pinned() -> None:
    orders = {permutation(50, seed, epoch).tobytes() for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(orders) == 6
    assert sorted(permutation(50, 0, 0).tolist()) == list(range(50))
    # A resumed run must see the same order under every numpy and on every machine.
    assert permutation(8, 42, 3).tolist() == [1, 6, 3, 4, 5, 2, 0, 7]


def test_validation_keeps_the_files_order_and_has_one_epoch() -> None:
    docs = unique_docs([5, 9, 4, 30])
    rows = PretrainRows([Part(make_store(docs), np.arange(4))], 8, "f", None)
    expected = reference_rows(docs, 8)
    batch = rows.batch(np.arange(rows.rows_per_epoch))
    np.testing.assert_array_equal(batch["tokens"], [row["tokens"] for row in expected])
    with pytest.raises(IndexError, match="one epoch"):
        rows.batch(np.array([rows.rows_per_epoch]))


def test_a_document_over_many_rows() -> None:
    docs = unique_docs([100])
    batch = PretrainRows([Part(make_store(docs), np.arange(1))], 16, "f", 0).batch(np.arange(7))
    np.testing.assert_array_equal(batch["positions"][3], np.arange(16))
    np.testing.assert_array_equal(batch["targets"][2], docs[0][33:49])
    assert batch["target_mask"].sum() == 99
    assert batch["segment_ids"].max() == 1


@given(st.integers(0, 100), st.integers(1, 9), st.none() | st.integers(0, 300))
def test_step_row_ids(step: int, batch_size: int, total: int | None) -> None:
    expected = [r if total is None or r < total else -1 for r in range(step * batch_size, (step + 1) * batch_size)]
    ids = step_row_ids(step, batch_size, total)
    assert ids.dtype == np.int64
    assert ids.tolist() == expected


def test_count_rows_rounds_up_what_is_written() -> None:
    assert 0.07 * 100 > 7
    assert count_rows(0.07, 100) == 7
    assert count_rows(2.0, 17) == 34
    assert count_rows(1.5, 3) == 5
    assert count_rows(1e-9, 3) == 1


def test_memory_of_an_epoch() -> None:
    n = 200_000
    store = make_store([])
    store = TokenStore(
        path=Path(),
        meta=store.meta,
        tokens=np.zeros(4 * n, np.uint16),
        flags=np.zeros(0, np.uint8),
        offsets=np.arange(0, 4 * n + 1, 4, dtype=np.uint64),
        n_bytes=np.full(n, 2, np.uint32),
        doc_hash=np.zeros(n, np.uint64),
    )
    docs = np.arange(n)
    tracemalloc.start()
    rows = PretrainRows([Part(store, docs)], 64, "f", 0)
    for epoch in range(4):
        rows.batch(np.array([epoch * rows.rows_per_epoch]))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # What the class's docstring states, plus the odd array of a batch.
    assert held < 36 * n + 2**19
    assert peak < 64 * n + 2**19


def test_byte_tokenizer_is_what_the_tests_think() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode_batch(["中a"])[0]) == "中a"
