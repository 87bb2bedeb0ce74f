"""What evaluate.py says to do is done, to the letter, and helps."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import evaluate
from convert.to_hf import export
from minimind_jax.config import ModelConfig
from minimind_jax.data.generate import Sizes, generate
from minimind_jax.model import abstract_params
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.workdir import LoadedModel

REPOSITORY = Path(__file__).parents[2]
CONFIG = ModelConfig(dim=32, n_layers=1, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=6400, max_seq_len=256)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), abstract_params(CONFIG))
    directory = tmp_path_factory.mktemp("model") / "hf"
    export(LoadedModel(CONFIG, params, load_tokenizer(), 0, Path("model")), directory)
    return directory


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    file.write_text('{"text": "the sea was calm"}\n')
    return file


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    generate(directory / "data", sizes=Sizes(0, 0, 0, 1), log=lambda line: None)
    return directory / "data" / "questions.jsonl"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command and returns what it exits with, "" for success."""

    def run(model: Path, data: Path, *options: object) -> str:
        argv = ["evaluate.py", "--model", model, "--data", data, *options]
        monkeypatch.setattr(sys, "argv", [str(a) for a in argv])
        try:
            evaluate.main()
        except SystemExit as e:
            return str(e.code or "")
        return ""

    return run


def test_questions_are_asked_by_the_task_that_is_named(run, model, questions):
    said = run(model, questions)
    (options,) = re.findall(r"evaluate it by (--task questions)", said)
    assert run(model, questions, *options.split()) == ""


def test_options_of_another_task(run, model, questions, texts, tmp_path):
    assert "add --task questions, or leave --plain away" in run(model, questions, "--plain")
    assert run(model, questions, "--plain", "--task", "questions") == ""
    assert run(model, texts) == ""
    for option in (["--by-length"], ["--batch-tokens", "64"]):
        assert "leave it away for --task questions" in run(model, questions, "--task", "questions", *option)
        assert run(model, texts, *option) == ""
    assert "must be at least 1" in run(model, texts, "--batch-tokens", "0")
    assert run(model, texts, "--batch-tokens", "1") == ""
    assert "name a file in a directory that exists" in run(model, texts, "--json", tmp_path / "no" / "x.json")
    assert run(model, texts, "--json", tmp_path / "x.json") == ""


def test_a_file_of_no_questions(run, model, texts, tmp_path):
    said = run(model, texts, "--task", "questions")
    (command,) = re.findall(r"Give a questions.jsonl as `python (.*?)` writes it", said)
    counts = ["--documents", "0", "--conversations", "0", "--pairs", "0", "--questions", "1"]
    done = subprocess.run(
        [sys.executable, *command.split(), "--out", tmp_path / "data", *counts],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert run(model, tmp_path / "data" / "questions.jsonl", "--task", "questions", "--plain") == ""


def test_a_conversation_is_not_asked_as_plain_text(run, model, questions, tmp_path):
    record = json.loads(questions.read_text().splitlines()[0])
    key = "conversations" if "conversations" in record else "messages"
    record[key] = [record[key][0], {"role": "assistant", "content": "Yes."}, record[key][0]]
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps(record) + "\n")
    said = run(model, file, "--task", "questions", "--plain")
    assert "leave --plain away" in said
    assert run(model, file, "--task", "questions") == ""


def test_the_limit_of_a_context_is_stretched(run, model, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "the sea was calm"}\n')
    assert "add --yarn-original TOKENS" in run(model, file, "--yarn-factor", "2")
    assert run(model, file, "--yarn-factor", "2", "--yarn-original", "128") == ""
    assert "leave --step away" in run(model, file, "--step", "3")
    assert run(model, file) == ""
