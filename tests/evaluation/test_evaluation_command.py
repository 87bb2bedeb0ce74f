"""`evaluate.py` by task: results on the screen and as JSON, options that do not belong together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from convert.to_hf import export
from minimind_jax.config import ModelConfig
from minimind_jax.data.generate import Sizes, generate
from minimind_jax.evaluation import ask, questions_table
from minimind_jax.model import abstract_params
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.workdir import LoadedModel

REPOSITORY = Path(__file__).parents[2]
CONFIG = ModelConfig(dim=32, n_layers=1, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=6400, max_seq_len=256)


def evaluate(*argv):
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    line = [sys.executable, "evaluate.py", *map(str, argv)]
    return subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)


def test_questions(tmp_path):
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), abstract_params(CONFIG))
    model = LoadedModel(CONFIG, params, load_tokenizer(), 0, Path("model"))
    export(model, tmp_path / "hf")
    generate(tmp_path / "data", sizes=Sizes(0, 0, 0, 1), log=lambda line: None)
    file, out = tmp_path / "data" / "questions.jsonl", tmp_path / "out.json"

    plain = ["--model", tmp_path / "hf", "--task", "questions", "--plain", "--data", file, "--json", out]
    done = evaluate(*plain)
    assert done.returncode == 0, done.stderr
    result, expected = json.loads(out.read_text()), ask(model, file, plain=True)
    assert questions_table(expected) in done.stdout
    source = {"model": str(tmp_path / "hf"), "step": 0, "data": str(file)}
    assert result == {**expected.to_dict(), "answers": expected.answers, "plain": True, **source}
    assert result["questions"] == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plain"], "--plain is a way to ask questions: add --task questions"),
        (["--task", "questions", "--batch-tokens", "64"], "--batch-tokens belongs to --task loss"),
        (["--batch-tokens", "0"], "--batch-tokens=0 must be at least 1"),
    ],
)
def test_options_that_do_not_belong_together(options, message):
    done = evaluate("--model", "nowhere", "--data", "none.jsonl", *options)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
