"""Every command in terminals that cannot show what it prints, and cannot say what they are asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from minimind_jax.config import ModelConfig
from minimind_jax.model import abstract_params
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.workdir import Workdir, save_imported

pytestmark = pytest.mark.slow  # whole runs

REPOSITORY = Path(__file__).parents[1]
TEXT = "你好，世界 🙂 naïve ☃ Ünï"
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
ASCII_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
SMALL = "--config.data.max_seq_len=64 --config.data.val_fraction=0.0 --config.data.cache_dir={out}/cache"
RECIPE = f"--config configs/pretrain.py:tiny,smoke --config.data.path={{data}} {SMALL}"
COMMANDS = {
    "inspect": f"-m minimind_jax.data inspect {RECIPE}",
    "chat": "chat.py --model {model} --max-tokens 8 --seed 1 --prompt 你好🙂 --system 系统☃",
    "evaluate": "evaluate.py --model {model} --data {data}",
    "train": f"train.py {RECIPE} --config.workdir={{out}}/跑🙂 --config.steps=2 --config.log_to=",
    "plan": f"-m minimind_jax.plan {RECIPE} --config.workdir={{out}}/跑🙂",
    "tokenizer": "-m minimind_jax.tokenizer train --data {data} --vocab-size 300 --out {out}/词🙂",
    "tokenizer-inspect": "-m minimind_jax.tokenizer inspect --data {data}",
    "generate": "-m minimind_jax.data.generate --out {out}/生🙂 --documents 50 --conversations 20 --pairs 10",
    "plot": "-m minimind_jax.training.plot {run} --out {out}/图🙂.png",
    "to_hf": "-m convert.to_hf --model {model} --out {out}/型🙂",
    "to_torch": "-m convert.to_torch --model {model} --out {out}/型🙂.pth",
    "to_gguf": "-m convert.to_gguf --model {model} --out {out}/型🙂.gguf --modelfile",
}
HELP = ["train.py", "evaluate.py", "chat.py", "serve.py", *(f"-m minimind_jax.{m}" for m in (
    "data", "data inspect", "tokenizer", "tokenizer train", "tokenizer inspect", "plan", "data.generate",
    "training.plot",
)), *(f"-m convert.{c}" for c in ("to_hf", "from_hf", "to_torch", "from_torch", "to_gguf"))]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    """A file, a model and the metrics of a run, all with names of many alphabets."""
    root = tmp_path_factory.mktemp("encodings") / "目录🙂é"
    root.mkdir()
    data = root / "文件🙂.jsonl"
    lines = [json.dumps({"text": f"{i} {TEXT}"}, ensure_ascii=False) for i in range(30)]
    data.write_text("\n".join([*lines, ""]), encoding="utf-8")
    config = ModelConfig(dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=16, max_seq_len=128)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: 0.3 * rng.standard_normal(a.shape, np.float32), abstract_params(config))
    save_imported(Workdir(root / "模型🙂"), config, params, load_tokenizer(), TEXT)
    run = Workdir(root / "跑🙂")
    run.checkpoints.mkdir(parents=True)
    run.write_config({"model": config.to_dict(), "stage": "pretrain", "batch_size": 1, "data": {"max_seq_len": 8}})
    run.metrics.write_text('{"step": 1, "loss": 2.0, "lr": 1e-3, "tokens_per_s": 1.0}\n')
    return {"data": data, "model": root / "模型🙂", "run": run.path}


def run(command: str, *more: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """`python COMMAND MORE`: its arguments reach it as UTF-8 bytes."""
    return subprocess.run(
        [sys.executable, *command.split(), *more],
        cwd=REPOSITORY,
        env=ENVIRONMENT | environment,
        input=stdin,
        capture_output=True,
        timeout=300,
    )


def check(done: subprocess.CompletedProcess[bytes], code: int = 0) -> str:
    assert done.returncode == code and b"Traceback" not in done.stderr, done.stderr.decode("utf-8", "replace")
    return done.stderr.decode("ascii", "replace")


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "latin-1"])
@pytest.mark.parametrize("name", COMMANDS)
def test_what_cannot_be_shown_is_replaced(name, encoding, places, tmp_path):
    command = COMMANDS[name].format(**places, out=tmp_path)
    done = run(command, PYTHONIOENCODING=encoding)
    check(done)
    shown = done.stdout.decode(encoding)  # raises if anything else was written
    if name not in ("chat", "plan", "generate"):  # which name no directory
        assert "?" in shown and "🙂" not in shown
    if name == "inspect" and encoding == "gbk":
        assert "你好，世界 ? na?ve" in shown


@pytest.mark.parametrize("command", HELP)
def test_help_is_shown_everywhere(command):
    done = run(command, "--help", **ASCII_LOCALE)
    check(done)
    assert len(done.stdout) > 100 and done.stdout.isascii()


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "latin-1"])
def test_the_server_and_import_say_what_they_can(encoding, places, tmp_path):
    check(run(f"-m convert.to_hf --model {places['model']} --out {tmp_path}/型🙂", PYTHONIOENCODING=encoding))
    check(run(f"-m convert.from_hf --model {tmp_path}/型🙂 --out {tmp_path}/入🙂", PYTHONIOENCODING=encoding))
    process = subprocess.Popen(
        [sys.executable, "serve.py", "--model", f"{tmp_path}/入🙂", "--port", "0"],
        cwd=REPOSITORY,
        env=ENVIRONMENT | {"PYTHONIOENCODING": encoding},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    line = process.stdout.readline().decode(encoding)
    assert "?" in line and "parameters in float32" in line
    process.send_signal(signal.SIGTERM)
    assert b"Traceback" not in process.communicate(timeout=60)[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_locale_that_cannot_decode_names_says_what_to_set(name, places, tmp_path):
    command = COMMANDS[name].format(**places, out=tmp_path)
    message = check(run(command, **ASCII_LOCALE), code=1)
    assert message.startswith("error: ") and message.count("\n") == 1
    assert "is no text in the encoding of this locale (ascii): set PYTHONUTF8=1 if it is UTF-8" in message
    check(run(command, **ASCII_LOCALE | {"PYTHONUTF8": "1"}))


def test_content_is_shown_in_a_locale_of_ascii(places, tmp_path):
    plain = tmp_path / "plain.jsonl"
    plain.write_bytes(places["data"].read_bytes())
    done = run(COMMANDS["inspect"].format(data=plain, out=tmp_path), **ASCII_LOCALE)
    check(done)
    assert done.stdout.isascii() and b"na?ve" in done.stdout


@pytest.fixture(scope="module")
def chatter(places, tmp_path_factory) -> Path:
    """The model at a name of ASCII only."""
    link = tmp_path_factory.mktemp("plain") / "model"
    link.symlink_to(places["model"])
    return link


def answers(chatter: Path, stdin: bytes, **environment: str) -> bytes:
    done = run(f"chat.py --model {chatter} --max-tokens 12 --temperature 0", stdin=stdin, **environment)
    check(done)
    return done.stdout


def test_questions_are_read_in_the_terminals_encoding(chatter):
    question = "你好，世界\n"
    expected = answers(chatter, question.encode(), PYTHONIOENCODING="utf-8").decode()
    other = answers(chatter, "什么\n".encode(), PYTHONIOENCODING="utf-8").decode()
    assert expected != other  # or it would say little
    gbk = answers(chatter, question.encode("gbk"), PYTHONIOENCODING="gbk")
    assert gbk == expected.encode("gbk", "replace")
    ascii_locale = answers(chatter, question.encode(), **ASCII_LOCALE)  # such a terminal mostly sends UTF-8
    assert ascii_locale == expected.encode("ascii", "replace")


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "utf-8"}, ASCII_LOCALE, {"LC_ALL": "C"}])
def test_bytes_that_are_no_text_are_refused_in_one_sentence(environment, chatter):
    done = run(f"chat.py --model {chatter}", stdin="你好\n".encode("gbk"), **environment)
    *_, last = check(done, code=1).splitlines()
    assert last.startswith("error: the input is not UTF-8 text: invalid")


def test_an_argument_that_is_no_text_is_refused(chatter):
    done = subprocess.run(
        [sys.executable, b"chat.py", b"--model", os.fsencode(chatter), b"--prompt", "你好".encode("gbk")],
        cwd=REPOSITORY,
        env=ENVIRONMENT | {"LC_ALL": "C.UTF-8"},
        capture_output=True,
    )
    assert "is no text in the encoding of this locale (utf-8)" in check(done, code=1)
