from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import numpy as np
import pytest
from data_helpers import BrokenTokenizer, ByteTokenizer, write_jsonl

from minimind_jax.config import DataConfig
from minimind_jax.data import PretrainRows, open_pretrain
from minimind_jax.errors import UserError


def config(tmp_path: Path, path: Path | str, **kwargs: object) -> DataConfig:
    return DataConfig(path=str(path), cache_dir=str(tmp_path / "cache"), max_seq_len=32, **kwargs)  # type: ignore[arg-type]


def texts_of(rows: PretrainRows | None) -> list[str]:
    """The documents of epoch 0, decoded, in order."""
    assert rows is not None
    batch = rows.batch(np.arange(rows.rows_per_epoch))
    stream = batch["tokens"][batch["segment_ids"] > 0].tolist()
    return [text for text in ByteTokenizer().decode(stream, skip_special_tokens=False).split("<bos>")[1:]]


def numbered(n: int) -> list[str]:
    return [f"text number {i}" for i in range(n)]


def ends(texts: list[str]) -> list[str]:
    return [f"{text}<eos>" for text in texts]


def test_without_validation(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", numbered(50))
    train, val = open_pretrain(config(tmp_path, path), ByteTokenizer(), seed=0)
    assert val is None
    assert sorted(texts_of(train)) == sorted(ends(numbered(50)))
    assert texts_of(train) != ends(numbered(50))


def test_order_is_a_function_of_the_seed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", numbered(50))
    orders = [texts_of(open_pretrain(config(tmp_path, path), ByteTokenizer(), seed)[0]) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_weights_repeat_a_file_within_an_epoch(tmp_path: Path) -> None:
    a = write_jsonl(tmp_path / "a.jsonl", ["a1", "a2"])
    b = write_jsonl(tmp_path / "b.jsonl", ["b1"])
    train, _ = open_pretrain(config(tmp_path, f"{a}:2,{b}:3"), ByteTokenizer(), 0)
    assert sorted(texts_of(train)) == ends(["a1", "a1", "a2", "a2", "b1", "b1", "b1"])
    assert (train.n_docs, train.n_bytes) == (7, 14)


def test_validation_by_file_in_the_files_order(tmp_path: Path) -> None:
    a = write_jsonl(tmp_path / "a.jsonl", numbered(5))
    b = write_jsonl(tmp_path / "b.jsonl", ["b1", "b2", "b3"])
    train, val = open_pretrain(config(tmp_path, a, val_path=str(b)), ByteTokenizer(), 0)
    assert sorted(texts_of(train)) == ends(numbered(5))
    assert texts_of(val) == ends(["b1", "b2", "b3"])
    with pytest.raises(UserError, match=r"data\.val_path: .*b\.jsonl has a weight"):
        open_pretrain(config(tmp_path, a, val_path=f"{b}:2"), ByteTokenizer(), 0)


def test_validation_by_fraction_is_stable(tmp_path: Path) -> None:
    texts = numbered(2000)

    def held_out(name: str, texts: list[str], seed: int = 0, weight: int = 1) -> list[str]:
        path = write_jsonl(tmp_path / name, texts)
        data = config(tmp_path, f"{path}:{weight}", val_fraction=0.1)
        train, val = open_pretrain(data, ByteTokenizer(), seed)
        assert set(texts_of(train)).isdisjoint(texts_of(val))
        assert sorted(texts_of(train) + texts_of(val) * weight) == sorted(ends(texts) * weight)
        return texts_of(val)

    val = held_out("a.jsonl", texts)
    assert 140 < len(val) < 260
    assert held_out("seed.jsonl", texts, seed=7) == val
    assert held_out("reversed.jsonl", texts[::-1]) == val[::-1]
    assert held_out("weight.jsonl", texts, weight=2) == val
    grown = held_out("grown.jsonl", texts + [f"new {i}" for i in range(500)])
    assert grown[: len(val)] == val
    assert set(held_out("doubled.jsonl", texts + texts)) == set(val)


@pytest.mark.parametrize("fraction", [1e-9, 0.3, 1 - 1e-9])
def test_each_side_of_a_split_has_at_least_one_document(tmp_path: Path, fraction: float) -> None:
    a, b = write_jsonl(tmp_path / "a.jsonl", ["one", "one"]), write_jsonl(tmp_path / "b.jsonl", ["two"])
    for spec in (f"{a},{b}", f"{b}:3,{a}"):
        train, val = open_pretrain(config(tmp_path, spec, val_fraction=fraction), ByteTokenizer(), 0)
        sides = [set(texts_of(rows)) for rows in (train, val)]
        assert sorted(sides, key=str) == [{"one<eos>"}, {"two<eos>"}]


def test_what_cannot_be_split_says_what_to_do(tmp_path: Path) -> None:
    for texts, reason in {
        ("one",): "has a single document",
        ("one", "one"): "the 2 documents in .* are all alike",
    }.items():
        path = write_jsonl(tmp_path / "a.jsonl", texts)
        with pytest.raises(UserError, match=rf"val_fraction=0\.1 has nothing to hold out.*{reason}") as e:
            open_pretrain(config(tmp_path, path, val_fraction=0.1), ByteTokenizer(), 0)
        assert "--config.data.val_fraction=0," in str(e.value) and "--config.data.val_path=" in str(e.value)
        assert open_pretrain(config(tmp_path, path, val_fraction=0), ByteTokenizer(), 0)[1] is None
        assert open_pretrain(config(tmp_path, path, val_path=str(path)), ByteTokenizer(), 0)[1] is not None


def test_bad_lines_at_every_start(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", numbered(9))
    with open(path, "ab") as file:
        file.write(b'\n{"content": "no text"}\n')
    os.utime(path, ns=(time.time_ns() - 10**10,) * 2)
    for tokenizer in (ByteTokenizer(), BrokenTokenizer()):  # the second start has only the store
        with pytest.raises(UserError, match=r"1 of 10 lines are unusable \(10 %\).*a\.jsonl:11: lacks `text`.*raise"):
            open_pretrain(config(tmp_path, path, max_bad_share=0.09), tokenizer, 0)
        train, _ = open_pretrain(config(tmp_path, path, max_bad_share=0.1), tokenizer, 0)
        assert train.n_docs == 9
        assert "skipped 1 of 10 lines as unusable: " in capfd.readouterr().err


def test_no_usable_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for text in ("\n\n", '{"conversations": []}\n'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"a\.jsonl has no usable line"):
            open_pretrain(config(tmp_path, path, max_bad_share=1.0), ByteTokenizer(), 0)


def test_fingerprint_is_the_content_not_the_place(tmp_path: Path) -> None:
    a = write_jsonl(tmp_path / "a.jsonl", numbered(40))
    b = write_jsonl(tmp_path / "b.jsonl", ["b1", "b2"])
    moved = write_jsonl(tmp_path / "moved.jsonl", numbered(40))
    base = config(tmp_path, f"{a},{b}", val_fraction=0.2)
    train, val = open_pretrain(base, ByteTokenizer(), 0)
    assert val is not None
    elsewhere = dataclasses.replace(base, path=f"{moved},{b}", cache_dir=str(tmp_path / "other"), num_workers=1)
    again, val_again = open_pretrain(elsewhere, ByteTokenizer(), 0)
    assert val_again is not None
    assert (again.fingerprint, val_again.fingerprint) == (train.fingerprint, val.fingerprint)
    changes = [
        dataclasses.replace(base, path=f"{a}:2,{b}"),
        dataclasses.replace(base, path=str(a)),
        dataclasses.replace(base, val_fraction=0.3),
        dataclasses.replace(base, max_seq_len=33),
    ]
    prints = {open_pretrain(data, ByteTokenizer(), 0)[0].fingerprint for data in changes}
    prints.add(open_pretrain(base, ByteTokenizer(300), 0)[0].fingerprint)
    assert len(prints | {train.fingerprint, val.fingerprint}) == 7


def test_real_texts_come_back(shared_data: Path, tmp_path: Path) -> None:
    lines = (shared_data / "pretrain.jsonl").read_bytes().splitlines(keepends=True)[:300]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(lines))
    train, _ = open_pretrain(config(tmp_path, path), ByteTokenizer(), 0)
    import json

    assert sorted(texts_of(train)) == sorted(ends([json.loads(line)["text"] for line in lines]))
