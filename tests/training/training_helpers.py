"""Tiny runs of the real training command, whole and interrupted."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from minimind_jax.recipe import load_recipe
from minimind_jax.training import run

REPOSITORY = Path(__file__).parents[2]
RECIPES = REPOSITORY / "configs"
BATCH_SIZE, SEQ_LEN = 8, 32

_NOUNS = {"en": ["sea", "hill", "lamp", "bird", "door", "rain"], "zh": ["大海", "山坡", "灯", "小鸟", "门", "雨"]}
_VERBS = {"en": ["waits", "sings", "falls", "shines"], "zh": ["等着", "唱歌", "落下", "发光"]}


def write_corpus(path: Path, n_docs: int = 300, seed: int = 0) -> Path:
    """A jsonl of short documents, Chinese and English in turn, of 1 to 6 sentences."""
    rng = random.Random(seed)
    with open(path, "w", encoding="utf-8") as file:
        for i in range(n_docs):
            language = ("en", "zh")[i % 2]
            template = "The {} {}." if language == "en" else "{}{}。"
            sentences = [
                template.format(rng.choice(_NOUNS[language]), rng.choice(_VERBS[language]))
                for _ in range(rng.randint(1, 6))
            ]
            file.write(json.dumps({"text": " ".join([str(i), *sentences])}, ensure_ascii=False) + "\n")
    return path


def write_chats(path: Path, n: int = 120, seed: int = 0) -> Path:
    """A jsonl of short conversations of one or two exchanges; every fifth has a system message."""
    rng = random.Random(seed)
    with open(path, "w", encoding="utf-8") as file:
        for i in range(n):
            messages = [{"role": "system", "content": "Say a verb."}] if i % 5 == 0 else []
            for _ in range(rng.randint(1, 2)):
                messages.append({"role": "user", "content": f"{i} {rng.choice(_NOUNS['zh'])}"})
                messages.append({"role": "assistant", "content": rng.choice(_VERBS["en"])})
            file.write(json.dumps({"conversations": messages}, ensure_ascii=False) + "\n")
    return path


def write_pairs(path: Path, n: int = 80, seed: int = 0) -> Path:
    """A jsonl of pairs: the chosen answer is an English verb, the rejected one a Chinese verb."""
    rng = random.Random(seed)
    with open(path, "w", encoding="utf-8") as file:
        for i in range(n):
            prompt = [{"role": "user", "content": f"{i} {rng.choice(_NOUNS['en'])}"}]
            sides = {
                side: [*prompt, {"role": "assistant", "content": " ".join(rng.choices(_VERBS[language], k=2))}]
                for side, language in (("chosen", "en"), ("rejected", "zh"))
            }
            file.write(json.dumps(sides, ensure_ascii=False) + "\n")
    return path


def overrides(workdir: Path, corpus: Path, recipe: str = "pretrain", **values: Any) -> list[str]:
    """Arguments of train.py for a run of seconds; `values` override keys, written `model__dim=8`."""
    keys: dict[str, Any] = {
        "workdir": workdir,
        "data.path": corpus,
        "data.cache_dir": corpus.parent / "tokens",
        "data.max_seq_len": SEQ_LEN,
        "data.val_fraction": 0.0,
        "data.num_workers": 1,
        "epochs": 0.0,
        "steps": 12,
        "batch_size": BATCH_SIZE,
        "accum_steps": 1,
        "remat": "none",
        "model.dim": 32,
        "model.n_layers": 2,
        "model.n_heads": 4,
        "model.n_kv_heads": 2,
        "optim.lr": 1e-2,
        "optim.warmup_steps": 2,
        "mesh.data": 1,
        "log_to": "",
        "log_every": 1,
        "eval_every": 0,
        "save_every": 4,
        "sample_prompts": "()",
    }
    keys |= {key.replace("__", "."): value for key, value in values.items()}
    if keys.get("init_from"):
        keys = {key: value for key, value in keys.items() if not key.startswith("model.")}
    return [f"--config={RECIPES / recipe}.py", *(f"--config.{key}={value}" for key, value in keys.items())]


def run_here(*arguments: str) -> None:
    """`train.py` without the process: raises what the command would print."""
    run(*load_recipe(["train.py", *arguments]))


def start_command(
    cache: Path,
    *arguments: str,
    before: str = "",
    wrapper: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """`python train.py ARGUMENTS` in a process of its own.

    Args:
      cache: becomes XDG_CACHE_HOME, where compiled programs are kept.
      arguments: of train.py.
      before: Python code that the process runs first, for example `signal_at_line`'s.
      wrapper: a command that runs the command it is given.
      environment: variables to add.
    """
    code = f"{before}\nimport train\ntrain.main()"
    return subprocess.Popen(
        [*wrapper, sys.executable, "-c", code, *arguments],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "XDG_CACHE_HOME": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **(environment or {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_command(
    cache: Path, *arguments: str, before: str = "", wrapper: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """`start_command`, to its end."""
    process = start_command(cache, *arguments, before=before, wrapper=wrapper)
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def signal_at_line(step: int, signal_name: str, saved: int = 0) -> str:
    """Code for `before`: the process sends itself a signal as soon as the metrics line of `step` is written.

    With `saved`, it first waits for that checkpoint, which is written beside the steps.
    """
    return f"""
import os, signal, time
from minimind_jax.training.metrics import MetricsLog
write = MetricsLog.write
def write_and_signal(self, line):
    write(self, line)
    if line["step"] == {step}:
        while {saved} and not self._workdir.checkpoint({saved}).exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.{signal_name})
MetricsLog.write = write_and_signal
"""


def kill_at_commit(step: int, moment: str) -> str:
    """Code for `before`: SIGKILL around the commit of checkpoint `step`.

    Orbax writes into a directory with a temporary name and renames it. `moment` "during": everything is written but
    the rename; "after": right after the rename.
    """
    return f"""
import os, signal
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
def killing(original):
    def rename(source, target, *rest, **options):
        commits = os.path.basename(os.fspath(target)) == "{step}"
        if commits and "{moment}" == "during":
            kill()
        original(source, target, *rest, **options)
        if commits:
            kill()
    return rename
os.rename, os.replace = killing(os.rename), killing(os.replace)
"""


# Code for `before`: SIGKILL while a new workdir is being furnished.
KILL_IN_TOKENIZER_SAVE = """
import os, shutil, signal
def copyfile(source, target):
    open(target, "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
shutil.copyfile = copyfile
"""


def slow_steps(seconds: float, first: int = 1) -> str:
    """Code for `before`: each step from `first` on takes at least that long."""
    return f"""
import time
from minimind_jax.training.metrics import MetricsLog
write = MetricsLog.write
def write_slowly(self, line):
    write(self, line)
    if line["step"] >= {first}:
        time.sleep({seconds})
MetricsLog.write = write_slowly
"""


def resumed_from(output: str) -> int:
    """The step in the line `resumed from step N`."""
    (step,) = re.findall(r"^resumed from step (\d+)$", output, re.MULTILINE)
    return int(step)


def lines_written(workdir: Path) -> int:
    file = workdir / "metrics.jsonl"
    return file.read_text("utf-8").count("\n") if file.exists() else 0


def metrics(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text("utf-8").splitlines()]


def losses(workdir: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in metrics(workdir)]


def checkpoint_steps(workdir: Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal())


def checkpoint(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of one checkpoint, parameters and optimiser, by path; whatever devices and processes wrote it."""
    arrays = {}
    with ocp.PyTreeCheckpointer() as checkpointer:
        for item in ("params", "opt_state"):
            where = (workdir / "checkpoints" / str(step) / item).absolute()
            stored = checkpointer.metadata(where).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
            tree = checkpointer.restore(where, ocp.args.PyTreeRestore(restore_args=as_numpy))
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return arrays


def assert_same_checkpoint(a: Path, b: Path, step: int) -> None:
    """Bit for bit."""
    ours, theirs = checkpoint(a, step), checkpoint(b, step)
    assert ours.keys() == theirs.keys() and len(ours) > 30
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        assert array.tobytes() == theirs[name].tobytes(), name


def listing(directory: Path) -> dict[str, bytes]:
    """Every file below a directory with its content."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}
