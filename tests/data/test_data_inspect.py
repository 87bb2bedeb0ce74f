from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_helpers import ByteTokenizer, save_tokenizer, write_jsonl
from rich.console import Console
from tokenizer_variants import write_variant

from minimind_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from minimind_jax.data.inspect import print_rows, render_row
from minimind_jax.tokenizer.load import SHIPPED, load_tokenizer
from minimind_jax.workdir import Workdir

ROOT = Path(__file__).parents[2]

RECIPE = """
from minimind_jax.recipe import base_recipe

def get_config(arg=None):
    config = base_recipe("pretrain")
    config.update(dict(stage="pretrain", workdir="unused", steps=1))
    config.data.max_seq_len = 16
    return config
"""


def as_ids(text: str) -> list[int]:
    return ByteTokenizer().encode_batch([text])[0]


def row(tokens: list[int], targets: list[int], segments: list[int]) -> dict[str, np.ndarray]:
    return {
        "tokens": np.array(tokens, np.int32),
        "targets": np.array(targets, np.int32),
        "segment_ids": np.array(segments, np.int32),
        "positions": np.zeros(len(tokens), np.int32),
        "target_mask": np.array(targets) > 0,
    }


def test_a_row_is_readable_without_colours() -> None:
    a, b, c, x, y = as_ids("abcxy")
    # "abc" goes on from the row before; "xy" is cut after x.
    tokens, targets = [a, b, c, 2, 1, x], [b, c, 2, 0, x, y]
    lines = [text.plain for text in render_row(row(tokens, targets, [1, 1, 1, 1, 2, 2]), ByteTokenizer())]
    assert lines == ["▏1 ⟦a⟧bc⟨eos⟩", "▏2 ⟦⟨bos⟩⟧x → y"]


def test_padding_masked_targets_and_control_characters() -> None:
    a, b, escape = as_ids("ab\x1b")
    tokens, targets = [1, a, b, escape, 2, 0, 0], [a, 0, escape, 2, 0, 0, 0]
    texts = list(render_row(row(tokens, targets, [1] * 5 + [0] * 2), ByteTokenizer()))
    assert [text.plain for text in texts] == ["▏1 ⟦⟨bos⟩⟧a⟦b⟧␛⟨eos⟩", "░ 2 tokens of padding"]
    styles = {texts[0].plain[span.start : span.end]: span.style for span in texts[0].spans}
    assert styles == {"⟨bos⟩": "magenta", "a": "green", "b": "dim", "␛": "green", "⟨eos⟩": "magenta"}


def test_figures_of_an_epoch(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "[a].jsonl", ["12345678", "12345678", "1234"])
    with open(path, "a") as file:
        file.write("{}\n")
    data = DataConfig(path=f"{path}:2", cache_dir=str(tmp_path / "cache"), max_seq_len=16, max_bad_share=0.5)
    out = io.StringIO()
    config = Config(stage="pretrain", workdir="out", model=ModelConfig(), data=data, optim=OptimConfig(), steps=1)
    print_rows(config, ByteTokenizer(), 9, Console(file=out, width=1000, highlight=False, markup=False))
    text = out.getvalue()
    assert f"{path} (jsonl): 3 sequences, 26 tokens, 2x an epoch, 1 bad lines" in text
    assert f"{path}:4: lacks `text`" in text
    # 2 x 26 tokens in 4 rows of 16, of which 6 documents x 1 are no targets.
    assert "6 documents, 52 tokens, 4 rows of 16; real tokens 81.25 %, targets 71.88 %" in text
    assert "row 3: 4 real tokens (25.00 %)" in text
    assert "░ 12 tokens of padding" in text
    assert "first 4 rows: 52 real tokens (81.25 %), 46 targets (71.88 %)" in text
    assert "validation: none" in text


def test_targets_of_a_conversation(tmp_path: Path) -> None:
    """Through the command, on the shipped tokenizer: what is learnt stands outside the brackets."""
    path = tmp_path / "a.jsonl"
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Ho"), ("user", "Bye"), ("assistant", "See you")]
    messages = [{"role": role, "content": content} for role, content in turns]
    path.write_text(json.dumps({"conversations": messages}) + "\n")
    arguments = {"data.path": path, "data.cache_dir": tmp_path / "cache", "data.val_fraction": 0.0, "init_from": ""}
    recipe = [f"--config={ROOT / 'configs/sft_512.py'}", *(f"--config.{k}={v}" for k, v in arguments.items())]
    result = run_inspect(*recipe, "--config.sft.empty_think_drop_prob=0.0")
    assert result.returncode == 0, result.stderr
    assert (
        "▏1 ⟦⟨|im_start|⟩system\nBe brief.⟨|im_end|⟩\n⟨|im_start|⟩user\nHi⟨|im_end|⟩\n⟨|im_start|⟩assistant\n⟧"
        "⟨think⟩\n\n⟨/think⟩\n\nHo⟨|im_end|⟩\n⟦⟨|im_start|⟩user\nBye⟨|im_end|⟩\n⟨|im_start|⟩assistant\n⟧"
        "⟨think⟩\n\n⟨/think⟩\n\nSee you⟨|im_end|⟩\n" in result.stdout
    )
    assert "tokens of padding" in result.stdout
    assert "1 x form `conversations`" in result.stdout


MARKED = ["<|im_start|>one<|im_end|> <|im_start|>two<|im_end|>", "three"]


@pytest.mark.parametrize(
    ("marks", "shown"),
    [
        ("split", ["⟦⟨|im_start|⟩⟧one⟨|im_end|⟩", "⟦⟨|im_start|⟩⟧two⟨|im_end|⟩"]),
        ("encode", ["⟦⟨|im_start|⟩⟧one⟨|im_end|⟩ ⟨|im_start|⟩two⟨|im_end|⟩"]),
        ("text", ["⟦⟨|im_start|⟩⟧<|im_start|>one<|im_end|> <|im_start|>two<|im_end|>⟨|im_end|⟩"]),
    ],
)
def test_spelt_marks_and_control_tokens_look_different(marks: str, shown: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(write_jsonl(tmp_path / "a", MARKED).read_bytes()))
    flags = [f"--config={ROOT / 'configs/pretrain.py'}:smoke", f"--config.data.path={path}"]
    result = run_inspect(*flags, f"--config.data.cache_dir={tmp_path / 'cache'}", f"--config.data.marks={marks}",
                         "--config.data.val_fraction=0.0")  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = [line.partition(" ")[2] for line in result.stdout.splitlines() if line.startswith("▏")]
    assert sorted(lines) == sorted([*shown, "⟦⟨|im_start|⟩⟧three⟨|im_end|⟩"])
    assert f"{path} (jsonl, in gzip): " in result.stdout
    assert "\n  1 x text " in result.stdout
    assert f"{path}: 1 of 2 lines: text " in result.stderr and f"(data.marks={marks})" in result.stderr


def run_inspect(*args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "minimind_jax.data", "inspect", *args]
    return subprocess.run(command, env=env, text=True, capture_output=True, timeout=60, check=False)


def test_the_command(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    path = write_jsonl(tmp_path / "a.jsonl", ["the sea was calm", "潮水退了"])
    flags = [f"--config={recipe}", f"--config.data.cache_dir={tmp_path / 'cache'}"]
    flags.append(f"--config.tokenizer={save_tokenizer(tmp_path / 'tokenizer')}")
    result = run_inspect("--rows", "1", *flags, f"--config.data.path={path}")
    assert result.returncode == 0, result.stderr
    assert "row 0: " in result.stdout
    assert "row 1: " not in result.stdout
    assert "⟦⟨|im_start|⟩⟧" in result.stdout

    result = run_inspect(*flags, "--config.data.path=nowhere.jsonl")
    assert (result.returncode, result.stderr) == (
        1,
        "error: data.path: nowhere.jsonl does not exist: set --config.data.path=FILE.jsonl\n",
    )


@pytest.mark.slow
def test_the_tokenizer_is_the_one_that_training_takes(tmp_path: Path) -> None:
    """`tokenizer`, else the begun run's own, else that of `init_from`: each cuts the text into other tokens."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    path = write_jsonl(tmp_path / "a.jsonl", ["the sea was calm"])
    own, theirs, named = (write_variant(tmp_path / f"{n}", n_merges=n) for n in (0, 20, 2000))
    lengths = [len(load_tokenizer(str(d)).encode("the sea was calm")) + 2 for d in (own, theirs, named)]
    assert len(set(lengths)) == 3
    shutil.copyfile(SHIPPED / "tokenizer_config.json", theirs / "config.json")  # any config.json: a model directory
    flags = [f"--config={recipe}", f"--config.data.cache_dir={tmp_path / 'cache'}", f"--config.data.path={path}"]

    def n_tokens(*more: str) -> int:
        result = run_inspect(*flags, *more)
        assert result.returncode == 0, result.stderr
        return int(re.findall(r"1 sequences, (\d+) tokens", result.stdout)[0])

    begun = Workdir(tmp_path / "run")
    (begun.checkpoints / "4").mkdir(parents=True)
    shutil.copytree(own, begun.tokenizer)
    init_from, workdir = f"--config.init_from={theirs}", f"--config.workdir={begun.path}"
    assert n_tokens(init_from, workdir, f"--config.tokenizer={named}") == lengths[2]
    assert n_tokens(init_from, workdir) == lengths[0]
    assert n_tokens(init_from) == lengths[1]
    result = run_inspect(*flags, "--config.init_from=later")
    assert "note: later is not there yet: read with the shipped tokenizer" in result.stdout


def test_the_data_room_does_not_need_jax() -> None:
    code = "import sys, minimind_jax.data, minimind_jax.data.worker; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
