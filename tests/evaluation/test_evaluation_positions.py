"""Loss by position: against transformers, token by token, for texts and for conversations; and by the command."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from evaluation_helpers import random_model

import evaluate
from convert.to_hf import export
from minimind_jax.config import ModelConfig, RopeScaling
from minimind_jax.evaluation import evaluate_file, positions_table
from minimind_jax.evaluation.positions import position_scores
from minimind_jax.workdir import Workdir, save_imported

REPOSITORY = Path(__file__).parents[2]
CONFIG = ModelConfig(
    dim=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    ffn_dim=48,
    vocab_size=6400,
    max_seq_len=700,
    rope_scaling=RopeScaling("yarn", 7.0, 100),
)
SENTENCES = ["The tide turned at noon; nobody on the pier had noticed. ", "中午潮水退了，码头上没有人注意到。"]
TEXTS = [SENTENCES[0], SENTENCES[1] * 11, SENTENCES[0] * 20, (SENTENCES[0] + SENTENCES[1]) * 40, "Ok."]


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG, scale=2)


@pytest.fixture(scope="module")
def hf(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("export") / "hf"
    export(model, directory)
    return directory


def token_losses(directory, ids):
    """transformers' loss of ids[1], ids[2], ...: float64, (len(ids) - 1,)."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    ids = torch.tensor([ids])
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].double()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").numpy()


def by_hand(losses_and_masks):
    """{first position of the range: (targets, mean loss)}, the range found by counting up."""
    ranges = {}
    for losses, is_target in losses_and_masks:
        for before, (loss, counted) in enumerate(zip(losses, is_target, strict=True), 1):  # tokens before the target
            first, last = 1, 128
            while before > last:
                first, last = last + 1, last * 2
            if counted:
                ranges.setdefault(first, []).append(loss)
    return {first: (len(losses), math.fsum(losses) / len(losses)) for first, losses in sorted(ranges.items())}


def check(score, expected):
    assert [s.first for s in score.by_position] == list(expected)
    for s, (targets, loss) in zip(score.by_position, expected.values(), strict=True):
        assert s.target_tokens == targets
        assert s.loss == pytest.approx(loss, rel=2e-6)
        assert s.perplexity == pytest.approx(math.exp(s.loss))
    total = sum(s.loss * s.target_tokens for s in score.by_position)
    assert total / score.target_tokens == pytest.approx(score.loss, rel=1e-12)
    assert sum(s.target_tokens for s in score.by_position) == score.target_tokens


def write(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def test_texts_beyond_yarns_original_length(model, hf, tmp_path):
    score = evaluate_file(model, write(tmp_path / "data.jsonl", [{"text": text} for text in TEXTS]))
    tokenizer, expected = model.tokenizer, []
    for text in TEXTS:
        ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id][: CONFIG.max_seq_len]
        expected.append((token_losses(hf, ids), [True] * (len(ids) - 1)))
    check(score, by_hand(expected))
    assert [(s.first, s.last) for s in score.by_position] == [(1, 128), (129, 256), (257, 512), (513, 1024)]
    assert score.longest == CONFIG.max_seq_len and score.truncated == 1
    losses = [s.loss for s in score.by_position]
    assert max(losses) - min(losses) > 0.01  # or a permutation of the ranges would pass


def test_conversations_count_their_targets_only(model, hf, tmp_path):
    questions, answers = ("Why? " * 60, "And then? "), (SENTENCES[0] * 3, SENTENCES[1] * 12)
    messages = []
    for question, answer in zip(questions, answers, strict=True):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    score = evaluate_file(model, write(tmp_path / "data.jsonl", [{"conversations": messages}]))

    tokenizer = transformers.AutoTokenizer.from_pretrained(hf)
    messages[-1]["reasoning_content"] = ""  # the empty block, which training gives an answer without thoughts
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    is_target, inside = [], False
    head = tokenizer("<|im_start|>assistant\n", add_special_tokens=False).input_ids
    end = tokenizer("<|im_end|>\n", add_special_tokens=False).input_ids
    for i in range(len(ids)):
        inside = inside or ids[i - len(head) : i] == head
        is_target.append(inside)
        inside = inside and ids[i - len(end) + 1 : i + 1] != end
    assert 0 < sum(is_target) < len(ids)
    expected = by_hand([(token_losses(hf, ids), is_target[1:])])
    assert 1 not in expected and len(expected) >= 2  # the first answer begins late
    check(score, expected)


@pytest.mark.parametrize(
    ("counts", "ranges"),
    [
        ({127: 2}, [(1, 128, 2)]),
        ({0: 1, 128: 3}, [(1, 128, 1), (129, 256, 3)]),
        ({255: 1, 256: 1, 1023: 4}, [(129, 256, 1), (257, 512, 1), (513, 1024, 4)]),
    ],
)
def test_the_edges_of_the_ranges(counts, ranges):
    targets = np.zeros(1024, np.int64)
    for position, n in counts.items():
        targets[position] = n
    scores = position_scores(targets * 3.0, targets)
    assert [(s.first, s.last, s.target_tokens) for s in scores] == ranges
    assert all(s.loss == 3.0 for s in scores)


def test_a_broken_models_perplexity_does_not_overflow():
    (score,) = position_scores(np.array([1e6]), np.array([1]))
    assert score.loss == 1e6 and math.isfinite(score.perplexity)


@pytest.mark.slow
def test_the_command_prints_and_writes_the_table(model, hf, tmp_path):
    data, out = write(tmp_path / "data.jsonl", [{"text": text} for text in TEXTS]), tmp_path / "out.json"
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    line = [sys.executable, "evaluate.py", "--model", str(hf), "--data", str(data), "--by-length", "--json", str(out)]
    done = subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = evaluate_file(model, data)
    assert positions_table(expected.by_position) in done.stdout
    written = json.loads(out.read_text())["by_position"]
    assert [(w["first"], w["last"], w["target_tokens"]) for w in written] == [
        (s.first, s.last, s.target_tokens) for s in expected.by_position
    ]
    assert [w["loss"] for w in written] == pytest.approx([s.loss for s in expected.by_position], rel=1e-6)


@pytest.mark.slow
def test_yarn_by_hand_is_what_a_config_with_yarn_gives(model, tmp_path, monkeypatch, capsys):
    plain = dataclasses.replace(CONFIG, rope_scaling=RopeScaling(), max_seq_len=32768)
    save_imported(Workdir(tmp_path / "run"), plain, model.params, model.tokenizer, "test")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "trained_max_seq_len": 100}))
    data, out = write(tmp_path / "data.jsonl", [{"text": text} for text in TEXTS]), tmp_path / "out.json"
    command = ["evaluate.py", "--model", str(tmp_path / "run"), "--data", str(data), "--json", str(out)]

    def result(*options):
        monkeypatch.setattr(sys, "argv", [*command, *options])
        evaluate.main()
        return json.loads(out.read_text()), capsys.readouterr()

    with_yarn, shown = result("--yarn-factor", "7")
    assert with_yarn["loss"] == pytest.approx(evaluate_file(model, data).loss, rel=1e-9)  # factor 7 of 100 tokens too
    assert with_yarn["yarn"] == "7 x 100" and "by_position" not in with_yarn and shown.err == ""
    without, shown = result()
    assert without["loss"] != with_yarn["loss"] and "yarn" not in without
    assert "warning: documents of up to" in shown.err and "than the 100 tokens of the longest rows" in shown.err
