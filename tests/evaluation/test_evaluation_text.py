"""Held-out loss and bits per byte: against transformers, against hand-counted bytes, on bad input."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from evaluation_helpers import random_model
from file_forms import FORMS

from convert.to_hf import export
from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.evaluation import evaluate_file, score_texts
from minimind_jax.evaluation.scoring import _bucket
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.workdir import Workdir, save_imported

REPOSITORY = Path(__file__).parents[2]
CONFIG = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=6400, max_seq_len=512)
TEXTS = [
    "清晨的码头上，老船长把缆绳一圈一圈绕好，抬头看了看云。",
    "The ferry leaves at 6:45, unless the fog has not lifted by then.",
    "一斤苹果八元，买三斤要二十四元。",
    "Ok.",
    "She planted 17 rows of beans; by August the crows had taken a third of them. " * 6,
    "图书馆里很安静，只有翻书的声音。窗外下着小雨，雨点打在玻璃上。" * 5,
    "emoji 🙂🙃 and mixed 中英 text\n\twith whitespace",
    "<|reserved_1|> is only text here",
]


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), encoding="utf-8")
    return path


def transformers_loss(directory, texts, limit):
    """Mean over all targets and their number, one text at a time."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    nats, targets = 0.0, 0
    for text in texts:
        content = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        ids = torch.tensor([[tokenizer.bos_token_id, *content, tokenizer.eos_token_id]])[:, :limit]
        with torch.no_grad():
            nats += model(ids, labels=ids).loss.double().item() * (ids.shape[1] - 1)
        targets += ids.shape[1] - 1
    return nats / targets, targets


@pytest.mark.parametrize("qk_norm", [False, True], ids=["llama", "qwen3"])
def test_loss_equals_transformers_on_the_export(qk_norm, tmp_path):
    model = random_model(dataclasses.replace(CONFIG, qk_norm=qk_norm), scale=3.0)
    export(model, tmp_path / "hf")
    expected, targets = transformers_loss(tmp_path / "hf", TEXTS, CONFIG.max_seq_len)
    score = evaluate_file(model, write_jsonl(tmp_path / "data.jsonl", TEXTS))
    assert score.loss == pytest.approx(expected, rel=1e-6)
    n_bytes = sum(len(t.encode()) for t in TEXTS)
    assert (score.target_tokens, score.documents, score.bytes) == (targets, len(TEXTS), n_bytes)
    assert (score.truncated, score.bad_lines) == (0, 0)
    assert score.bits_per_byte == pytest.approx(expected * targets / math.log(2) / n_bytes, rel=1e-6)
    assert abs(expected - math.log(CONFIG.vocab_size)) > 0.1  # not merely a uniform guess


def test_truncated_texts_are_cut_at_the_limit_and_count_the_scored_bytes(tmp_path):
    model = random_model(dataclasses.replace(CONFIG, max_seq_len=40), scale=3.0)
    export(model, tmp_path / "hf")
    expected, targets = transformers_loss(tmp_path / "hf", TEXTS, 40)
    score = score_texts(model, TEXTS)
    assert score.loss == pytest.approx(expected, rel=1e-6)
    assert (score.truncated, score.target_tokens) == (2, targets)
    cut = [model.tokenizer.decode(model.tokenizer.encode(TEXTS[i])[:39]) for i in (4, 5)]
    assert all(TEXTS[i].startswith(piece) for i, piece in zip((4, 5), cut, strict=True))
    rest = [t for i, t in enumerate(TEXTS) if i not in (4, 5)]
    assert score.bytes == sum(len(t.encode()) for t in rest + cut)


def test_a_character_that_the_limit_cuts_counts_as_not_scored():
    tokenizer, text = load_tokenizer(), "ab𓀀"
    n_whole, n_all = len(tokenizer.encode("ab")), len(tokenizer.encode(text))
    assert n_all > n_whole + 1  # this character is several tokens
    model = random_model(dataclasses.replace(CONFIG, max_seq_len=1 + n_whole + 1))
    score = score_texts(model, [text])
    assert (score.truncated, score.target_tokens, score.bytes) == (1, n_whole + 1, 2)


def test_a_text_that_just_fits_is_not_truncated():
    n = len(load_tokenizer().encode(TEXTS[0]))
    fits, short = (random_model(dataclasses.replace(CONFIG, max_seq_len=n + extra)) for extra in (2, 1))
    assert score_texts(fits, TEXTS[:1]).truncated == 0
    only_eos_cut = score_texts(short, TEXTS[:1])
    assert (only_eos_cut.truncated, only_eos_cut.bytes) == (1, len(TEXTS[0].encode()))


def test_batching_does_not_change_the_numbers():
    model = random_model(CONFIG, scale=3.0)
    one_by_one, together = (score_texts(model, TEXTS, batch_tokens=n) for n in (1, 1024))
    assert one_by_one.loss == pytest.approx(together.loss, rel=1e-6)
    for a, b in zip(one_by_one.by_position, together.by_position, strict=True):
        assert (a.first, a.last, a.target_tokens) == (b.first, b.last, b.target_tokens)
        assert a.loss == pytest.approx(b.loss, rel=1e-6)
    rounded = dict(loss=0, bits_per_byte=0, by_position=())
    assert dataclasses.replace(one_by_one, **rounded) == dataclasses.replace(together, **rounded)
    reversed_order = score_texts(model, TEXTS[::-1], batch_tokens=1024)
    assert reversed_order.loss == pytest.approx(together.loss, rel=1e-6)


def test_few_lengths_are_compiled():
    buckets = [_bucket(n) for n in range(1, 32769)]
    assert len(set(buckets)) == 10
    assert all(n <= b <= max(64, 2 * n) for n, b in enumerate(buckets, 1))


@pytest.mark.slow
def test_long_texts_go_piece_by_piece_to_the_same_loss(monkeypatch):
    model, text = random_model(dataclasses.replace(CONFIG, dim=16, ffn_dim=32, n_layers=1)), TEXTS[4]
    expected = score_texts(model, [text])
    monkeypatch.setattr("minimind_jax.model.attention.xla._LONG", 64)
    monkeypatch.setattr("minimind_jax.model.attention.xla._PIECE", 32)
    jax.clear_caches()
    assert score_texts(model, [text]).loss == pytest.approx(expected.loss, rel=1e-6)
    jax.clear_caches()


def test_a_uniform_model_costs_log_vocabulary():
    model = random_model(CONFIG)
    model.params["embed"][:] = 0
    score = score_texts(model, TEXTS)
    assert score.loss == pytest.approx(math.log(CONFIG.vocab_size), rel=1e-6)


def test_bad_lines_are_counted_up_to_one_percent(tmp_path, capsys):
    model, file = random_model(CONFIG), tmp_path / "data.jsonl"
    lines = [json.dumps({"text": TEXTS[0]})] * 120
    lines[5] = '{"txt": "misspelt"}'
    file.write_text("\n".join(lines) + "\n")
    score = evaluate_file(model, file)
    assert (score.bad_lines, score.documents) == (1, 119)
    assert f"{file}:6" in capsys.readouterr().out
    lines[7] = "not json"
    file.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"2 of 120 lines are unusable"):
        evaluate_file(model, file)


@pytest.mark.parametrize("content", ["", "\n\n", "{nonsense\n", '{"text": ""}\n'])
def test_files_without_a_usable_line(content, tmp_path):
    (tmp_path / "data.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"data\.jsonl has no usable line"):
        evaluate_file(random_model(CONFIG), tmp_path / "data.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "array.json", "a.parquet"])
def test_other_forms_of_files_score_the_same(name, tmp_path):
    model = random_model(CONFIG, scale=3.0)
    FORMS[name](tmp_path / name, [{"text": text} for text in TEXTS])
    assert evaluate_file(model, tmp_path / name) == evaluate_file(model, write_jsonl(tmp_path / "data.jsonl", TEXTS))


def test_a_text_is_split_at_its_marks_as_in_training(tmp_path, capsys):
    model = random_model(CONFIG, scale=3.0)
    marked = write_jsonl(tmp_path / "a.jsonl", [f"<|im_start|>{TEXTS[0]}<|im_end|> <|im_start|>{TEXTS[1]}<|im_end|>"])
    apart = evaluate_file(model, write_jsonl(tmp_path / "b.jsonl", TEXTS[:2]))
    assert capsys.readouterr().err == ""
    assert evaluate_file(model, marked) == apart
    assert "1 texts were split into documents at their marks" in capsys.readouterr().err


def test_broken_weights_are_an_error_not_a_number():
    model = random_model(CONFIG)
    model.params["final_norm"][3] = np.nan
    with pytest.raises(UserError, match="not finite"):
        score_texts(model, TEXTS[:2])


def test_nothing_to_score():
    with pytest.raises(UserError, match="nothing to score"):
        score_texts(random_model(dataclasses.replace(CONFIG, max_seq_len=1)), TEXTS[:1])


def evaluate_command(*argv):
    code = "import sys, runpy; sys.argv = sys.argv[1:]\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    code += "finally: print('torch' in sys.modules or 'transformers' in sys.modules)"
    line = [sys.executable, "-c", code, "evaluate.py", *map(str, argv)]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_command_on_a_workdir_and_on_its_export(tmp_path):
    model, data = random_model(CONFIG, scale=3.0), write_jsonl(tmp_path / "data.jsonl", TEXTS)
    save_imported(Workdir(tmp_path / "workdir"), model.config, model.params, model.tokenizer, "test")
    export(model, tmp_path / "hf")
    expected, results = evaluate_file(model, data), []
    for name in ("workdir", "hf"):
        out = tmp_path / f"{name}.json"
        done = evaluate_command("--model", tmp_path / name, "--data", data, "--json", out)
        assert (done.returncode, done.stdout.split()[-1]) == (0, "False"), done.stderr
        result = json.loads(out.read_text())
        assert f"{result['loss']:.6g}" in done.stdout
        assert (result.pop("model"), result.pop("data"), result.pop("step")) == (str(tmp_path / name), str(data), 0)
        results.append(result)
    assert results[0] == results[1]
    assert results[0].pop("loss") == pytest.approx(expected.loss, rel=1e-6)
    assert results[0].pop("bits_per_byte") == pytest.approx(expected.bits_per_byte, rel=1e-6)
    without = ("loss", "bits_per_byte", "by_position", "by_document")  # the third is written for --by-length only
    assert results[0] == {k: v for k, v in vars(expected).items() if k not in without}


def test_command_keeps_an_old_result_when_the_input_is_bad(tmp_path):
    out = tmp_path / "out.json"
    out.write_text("old")
    export(random_model(CONFIG), tmp_path / "hf")
    done = evaluate_command("--model", tmp_path / "hf", "--data", tmp_path / "none.jsonl", "--json", out)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and "none.jsonl" in done.stderr
    assert out.read_text() == "old"
