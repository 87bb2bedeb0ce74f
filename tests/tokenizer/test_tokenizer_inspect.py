"""Characters per token: against a count by hand, and the shipped tokenizer's promise on documents it never saw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from minimind_jax.errors import UserError
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.tokenizer.__main__ import main
from minimind_jax.tokenizer.corpus import Corpus
from minimind_jax.tokenizer.inspect import measure

# MiniMind's own 6,400 entries reach 0.992 Chinese and 2.833 English characters a token on text of this kind.
TARGETS = {"zh": 1.1 * 0.992, "en": 1.1 * 2.833}
HOLDOUT = 0.05  # as in minimind_jax/tokenizer/minimind/README.md

TEXTS = ["春眠不觉晓，处处闻啼鸟。", "夜来风雨声", "The quick brown fox.", "The quick <|im_end|> café"]


def test_sums_by_language() -> None:
    tokenizer = load_tokenizer()
    reports = measure(tokenizer, TEXTS * 300)
    hf = AutoTokenizer.from_pretrained(str(tokenizer.path), split_special_tokens=True)
    for name, texts in (("zh", TEXTS[:2]), ("en", TEXTS[2:])):
        report = reports[name]
        tokens = sum(len(hf.encode(t)) for t in texts)
        assert (report.texts, report.lossy, report.unknown) == (600, 0, 0)
        assert report.characters == 300 * sum(map(len, texts))
        assert report.n_bytes == 300 * sum(len(t.encode()) for t in texts)
        assert report.tokens == report.counts.total() == 300 * tokens
        assert report.chars_per_token == pytest.approx(sum(map(len, texts)) / tokens)


def test_lossy_texts_and_unknown_tokens_are_counted(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "b", "unk_token": "?"}')
    report = measure(load_tokenizer(str(tmp_path)), ["a b", "a zebra b zebra", "b  b"])["en"]
    assert (report.texts, report.lossy, report.unknown) == (3, 2, 2)


def test_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS) + "oops\n")
    main(["inspect", "--data", str(path)])
    printed = capsys.readouterr().out
    assert "chars/token" in printed and "6,400 entries" in printed
    assert f"skipped 1 unusable lines, the first at {path}:5" in printed
    row = next(line.split() for line in printed.splitlines() if line.startswith("zh "))
    assert row[:3] == ["zh", "2", "17"] and float(row[4]) == pytest.approx(17 / int(row[3]), abs=1e-4)


def test_nothing_to_measure_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(UserError, match="no usable text to measure"):
        main(["inspect", "--data", str(tmp_path / "a.jsonl")])


def test_ten_percent_more_characters_a_token_than_minimind(shared_data: Path) -> None:
    held_out = Corpus([shared_data / "pretrain.jsonl"], HOLDOUT, held_out=True)
    reports = measure(load_tokenizer(), held_out)
    for name, target in TARGETS.items():
        assert reports[name].texts > 300
        assert reports[name].chars_per_token >= target
        assert reports[name].lossy == 0


def test_matches_transformers_on_real_text(shared_data: Path) -> None:
    tokenizer = load_tokenizer()
    hf = AutoTokenizer.from_pretrained(str(tokenizer.path))
    texts = list(Corpus([shared_data / "pretrain.jsonl", shared_data / "sft_512.jsonl"], 0.01, held_out=True))
    assert len(texts) > 200
    assert [tokenizer.encode_rendered(t) for t in texts] == hf(texts)["input_ids"]
