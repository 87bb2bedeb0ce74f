"""Whatever a user can get wrong is one sentence that says what and where; nothing is written or overwritten."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import training_helpers as th

from convert import to_hf
from minimind_jax.errors import UserError
from minimind_jax.training import job, loop, step
from minimind_jax.workdir import load_model


@pytest.fixture(autouse=True)
def compile_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corpus) -> Path:
    """A finished run of 4 steps; read only."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        th.run_here(*th.overrides(workdir, corpus, steps=4))
    return workdir


def refused(workdir: Path, data: Path, *more: str, **values: Any) -> str:
    """The error's text, after checking that it is one sentence and that the workdir is as it was."""
    before = th.listing(workdir) if workdir.exists() else None
    with pytest.raises(UserError) as error:
        th.run_here(*th.overrides(workdir, data, **values), *more)
    message = str(error.value)
    assert "\n" not in message and len(message) < 1000
    assert (th.listing(workdir) if workdir.exists() else None) == before
    return message


def assert_contains(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, message


# --- Configuration ----------------------------------------------------------------------------------

BAD_VALUES = {
    "unknown key": (["--config.optim.lrr=1"], ["optim.lrr", "did you mean optim.lr?"]),
    "unknown section": (["--config.optimizer.lr=1"], ["optimizer.lr", "did you mean optim.lr?"]),
    "word for a number": (["--config.batch_size=many"], ["batch_size", "many"]),
    "fraction for a count": (["--config.model.n_layers=1.5"], ["n_layers", "1.5"]),
    "number for a section": (["--config.model=3"], ["model"]),
    "word for a truth value": (["--config.model.qk_norm=perhaps"], ["qk_norm"]),
    "negative lr": (["--config.optim.lr=-1"], ["optim.lr=-1"]),
    "NaN": (["--config.optim.lr=nan"], ["optim.lr=nan", "finite"]),
    "infinite": (["--config.optim.weight_decay=inf"], ["optim.weight_decay=inf", "finite"]),
    "zero row length": (["--config.data.max_seq_len=0"], ["data.max_seq_len=0"]),
    "negative layers": (["--config.model.n_layers=-2"], ["model.n_layers=-2"]),
    "no length": (["--config.steps=0"], ["steps and epochs are both 0"]),
    "negative epochs": (["--config.epochs=-1.0"], ["epochs=-1"]),
    "batch and accumulation": (["--config.accum_steps=3"], ["batch_size=8", "accum_steps=3"]),
    "batch and devices": (["--config.mesh.data=3"], ["batch_size=8", "3 devices"]),
    "batch and both": (["--config.mesh.data=4", "--config.accum_steps=4"], ["4 devices", "accum_steps=4"]),
    "too many devices": (["--config.mesh.data=99"], ["mesh.data=99", "there are 8"]),
    "indivisible devices": (["--config.mesh.data=-1", "--config.mesh.fsdp=3"], ["8 devices", "mesh.fsdp=3"]),
    "heads and width": (["--config.model.dim=30"], ["model.dim=30", "model.n_heads=4"]),
    "heads and groups": (["--config.model.n_kv_heads=3"], ["model.n_heads=4", "model.n_kv_heads=3"]),
    "rows and limit": (["--config.model.max_seq_len=16"], ["data.max_seq_len=32", "model.max_seq_len=16"]),
    "float16": (["--config.precision.compute=float16"], ["precision.compute=float16", "bfloat16"]),
    "unknown choice": (["--config.attention=flash"], ["attention='flash'", "auto, xla, triton, cudnn"]),
    "attention that mixes documents": (["--config.attention=cudnn"], ["attention=cudnn", "packed row", "=auto"]),
    "attention of another platform": (["--config.attention=triton"], ["attention=triton", "GPU", "attention=xla"]),
    "unknown stage": (["--config.stage=rlhf"], ["stage='rlhf'"]),
    "no workdir": (["--config.workdir="], ["workdir is empty"]),
    "small vocabulary": (["--config.model.vocab_size=100"], ["6400", "model.vocab_size=100"]),
    "no tokenizer": (["--config.tokenizer=/nonexistent"], ["/nonexistent"]),
    "a stray word": (["model.dim=8"], ["unexpected argument 'model.dim=8'"]),
    "a flag of another program": (["--learning_rate=1"], ["--learning_rate", "--config.KEY=VALUE"]),
    "no data": (["--config.data.path="], ["data.path is empty"]),
    "two ways to hold out": (
        ["--config.data.val_fraction=0.1", "--config.data.val_path=x.jsonl"],
        ["data.val_path", "data.val_fraction"],
    ),
}


@pytest.mark.parametrize(("arguments", "parts"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_bad_configuration(tmp_path, corpus, arguments, parts):
    assert_contains(refused(tmp_path / "run", corpus, *arguments), *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        ("nowhere.py", ["nowhere.py does not exist"]),
        (f"{th.RECIPES}/pretrain.py:huge", ["'huge'", "minimind2_small", "smoke"]),
    ],
)
def test_bad_recipe(recipe, parts):
    with pytest.raises(UserError) as error:
        th.run_here(f"--config={recipe}")
    assert_contains(str(error.value), *parts)


# --- Data -------------------------------------------------------------------------------------------


def test_missing_and_empty_files(tmp_path):
    workdir, empty = tmp_path / "run", tmp_path / "empty.jsonl"
    empty.touch()
    assert_contains(refused(workdir, tmp_path / "no.jsonl"), f"{tmp_path}/no.jsonl does not exist")
    assert_contains(refused(workdir, tmp_path / "no*.jsonl"), f"no file matches {tmp_path}/no*.jsonl")
    assert_contains(refused(workdir, empty), f"{empty} is empty")
    assert_contains(refused(workdir, tmp_path), f"{tmp_path} is a directory")
    empty.write_text("\n\n")
    assert_contains(refused(workdir, empty), f"{empty} has no usable line")


def test_unusable_lines_are_named_and_tolerated_up_to_a_share(tmp_path, capfd):
    data, workdir = tmp_path / "data.jsonl", tmp_path / "run"
    good = [json.dumps({"text": f"document {i} of the file"}).encode() for i in range(95)]
    bad = {
        3: (b"\xff\xfe", "not UTF-8"),
        5: (b'{"text": ', "not JSON"),
        8: (b'{"txet": "a"}', "lacks `text`"),
        9: (b'{"text": 7}', "`text` is not a string"),
        12: (json.dumps({"text": "x" * (16 * 2**20 + 1)}).encode(), "longer than 16 MiB"),
    }
    lines = list(good)
    for number, (line, _) in bad.items():
        lines.insert(number - 1, line)
    data.write_bytes(b"\n".join(lines) + b"\n")
    message = refused(workdir, data, data__max_bad_share=0.04)
    named = [f"{data}:{number}: {reason}" for number, (_, reason) in bad.items()]
    assert_contains(message, "5 of 100 lines are unusable", "data.max_bad_share=0.04", *named)
    capfd.readouterr()
    th.run_here(*th.overrides(workdir, data, data__max_bad_share=0.05, steps=1))
    assert_contains(capfd.readouterr().err, "skipped 5 of 100 lines as unusable", *named)


def test_held_out_share_of_a_single_document(tmp_path):
    corpus = th.write_corpus(tmp_path / "one.jsonl", n_docs=1)
    message = refused(tmp_path / "run", corpus, data__val_fraction=1e-9)
    assert_contains(
        message, "data.val_fraction=1e-09 has nothing to hold out", str(corpus), "--config.data.val_fraction=0"
    )


# --- Workdirs ---------------------------------------------------------------------------------------


def test_workdir_of_another_run(trained, corpus, tmp_path):
    other = th.write_corpus(tmp_path / "other.jsonl", seed=1)
    advice = ["holds another run", "To continue it, set these back", "--config.workdir"]
    message = refused(trained, corpus, steps=8, seed=1, optim__lr=0.5)
    assert_contains(message, "seed was 0, now 1", "optim.lr was 0.01, now 0.5", *advice)
    assert "batch_size" not in message
    for key, value in {"batch_size": 16, "model.dim": 64, "data.max_seq_len": 16, "optim.schedule": "constant"}.items():
        assert_contains(refused(trained, corpus, f"--config.{key}={value}", steps=8), f"{key} was", *advice)
    assert_contains(refused(trained, other, steps=8, data__cache_dir=tmp_path / "tokens"), "data.content was", *advice)


def test_workdir_that_is_something_else(tmp_path, corpus):
    file, directory, damaged = tmp_path / "file", tmp_path / "photos", tmp_path / "damaged"
    file.write_text("mine")
    directory.mkdir()
    (directory / "cat.png").write_text("mine")
    damaged.mkdir()
    (damaged / "config.json").write_text("{")
    assert_contains(refused(directory, corpus), f"{directory} is not empty and holds no run", "--config.workdir")
    assert_contains(refused(damaged, corpus), f"{damaged}/config.json is damaged")
    with pytest.raises(UserError, match=f"workdir {file} is a file"):
        th.run_here(*th.overrides(file, corpus))
    assert file.read_text() == "mine"


# --- init_from --------------------------------------------------------------------------------------


def test_init_from_a_workdir_and_from_its_export(trained, corpus, tmp_path):
    """Both start from the same parameters, fresh optimiser and step 0, and take the architecture along."""
    exported = tmp_path / "hf"
    to_hf.export(load_model(trained), exported)
    for name, source in {"from_workdir": trained, "from_hf": exported}.items():
        # The recipe says 1024 x 16; what the user does not set comes from the model.
        arguments = [a for a in th.overrides(tmp_path / name, corpus, init_from=source, steps=3) if "model." not in a]
        th.run_here(*arguments)
    first, second = th.losses(tmp_path / "from_workdir"), th.losses(tmp_path / "from_hf")
    assert first == second and [step for step, _ in first] == [1, 2, 3]
    assert first[0][1] < th.losses(trained)[0][1] - 0.5  # goes on from where that run ended
    th.assert_same_checkpoint(tmp_path / "from_workdir", tmp_path / "from_hf", 3)


def test_init_from_nothing_that_fits(trained, corpus, tmp_path):
    workdir, empty, foreign, cut = (tmp_path / name for name in ("run", "empty", "foreign", "cut"))
    empty.mkdir()
    foreign.mkdir()
    (foreign / "config.json").write_text(json.dumps({"architectures": ["BertModel"], "model_type": "bert"}))
    to_hf.export(load_model(trained), cut)
    (cut / "model.safetensors").unlink()
    unsaved = tmp_path / "unsaved"
    shutil.copytree(trained, unsaved)
    shutil.rmtree(unsaved / "checkpoints")
    (unsaved / "checkpoints").mkdir()

    def message(source: Path, *more: str) -> str:
        arguments = [a for a in th.overrides(workdir, corpus, init_from=source) if "model." not in a]
        with pytest.raises(UserError) as error:
            th.run_here(*arguments, *more)
        assert not workdir.exists()
        return str(error.value)

    assert_contains(message(tmp_path / "nowhere"), f"{tmp_path}/nowhere is not a directory")
    assert_contains(message(empty), f"{empty} is neither a workdir nor a Hugging Face model")
    assert_contains(message(foreign), "BertModel")
    assert_contains(message(cut), str(cut), "model.safetensors")
    assert_contains(message(unsaved), f"{unsaved} has no checkpoint yet")
    contradiction = message(trained, "--config.model.dim=64")
    assert_contains(contradiction, "model.dim=64 contradicts init_from", "has 32")
    assert_contains(message(trained, "--config.data.max_seq_len=40000"), "model.max_seq_len=32768")


# --- What goes wrong later --------------------------------------------------------------------------


def test_out_of_device_memory(tmp_path, corpus, monkeypatch):
    def exhausted(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nmany\nlines")

    monkeypatch.setattr(loop, "compile_train_step", lambda *_: exhausted)
    with pytest.raises(UserError) as error:
        th.run_here(*th.overrides(tmp_path / "run", corpus))
    assert_contains(str(error.value), "out of device memory", "accum_steps", "remat", "data.max_seq_len", "fsdp")
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert_contains(str(job.check_memory_error(RuntimeError("INTERNAL: bug"))), "INTERNAL: bug")


def test_non_finite_steps_are_skipped_and_counted(tmp_path, corpus, monkeypatch, capsys):
    """Two poisoned batches: parameters stay, the run goes on, the rows are named."""
    workdir = tmp_path / "run"
    poison(monkeypatch, steps={4, 5})
    th.run_here(*th.overrides(workdir, corpus, steps=8))
    lines = th.metrics(workdir)
    assert [line["skipped"] for line in lines] == [0, 0, 0, 1, 2, 2, 2, 2]
    assert [line["loss"] is None for line in lines] == [False] * 3 + [True] * 2 + [False] * 3
    said = capsys.readouterr().out
    assert "step 4: loss or gradient is not finite, update skipped (rows 24 to 31 of the run; 1 so far)" in said
    assert all(np.isfinite(array).all() for array in th.checkpoint(workdir, 8).values())


@pytest.mark.slow
def test_five_non_finite_steps_in_a_row_stop_the_run(tmp_path, corpus, monkeypatch):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        poison(patch, steps=set(range(6, 99)))
        with pytest.raises(UserError) as error:
            th.run_here(*th.overrides(workdir, corpus, steps=20))
    assert_contains(str(error.value), "5 steps in a row up to step 10", "checkpoint is intact", "optim.lr")
    assert [line["step"] for line in th.metrics(workdir)] == list(range(1, 10))
    assert th.checkpoint_steps(workdir) == [4, 8]
    # Step 8 was saved while it went wrong: skipped steps changed nothing but the counters.
    th.run_here(*th.overrides(workdir, corpus, steps=20))
    assert [line["step"] for line in th.metrics(workdir)] == list(range(1, 21))
    assert th.metrics(workdir)[-1]["skipped"] == 3


def test_a_huge_learning_rate_stops_the_run(tmp_path, corpus):
    with pytest.raises(UserError, match=r"5 steps in a row up to step \d+ had a non-finite loss or gradient"):
        th.run_here(*th.overrides(tmp_path / "run", corpus, steps=50, optim__lr=1e30))


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Makes the loss of these steps (from 1) NaN, by way of their gradients too."""
    make_train_step = step.make_train_step

    def poisoned(forward, *rest):
        def bad_forward(params, batch):
            first_token_of_padding = batch["positions"][0, 0] < 0
            return forward(params, batch) * jax.numpy.where(first_token_of_padding, jax.numpy.nan, 1.0)

        return make_train_step(bad_forward, *rest)

    make_batch = loop.make_batch

    def marked(this_job, number):
        batch = make_batch(this_job, number)
        return batch | {"positions": batch["positions"] - 1000} if number + 1 in steps else batch

    monkeypatch.setattr(job, "make_train_step", poisoned)
    monkeypatch.setattr(loop, "make_batch", marked)


# --- Through the real command -----------------------------------------------------------------------


def test_the_command_prints_one_line_and_fails(tmp_path, corpus):
    workdir = tmp_path / "run"
    cases = [
        (
            ["--config.data.path=" + str(tmp_path / "no.jsonl")],
            f"error: data.path: {tmp_path}/no.jsonl does not exist: set --config.data.path=FILE.jsonl\n",
        ),
        (["--config.model.dmi=8"], "error: unknown config key model.dmi: did you mean model.dim?\n"),
        (["--config.batch_size=9", "--config.accum_steps=2"], "error: batch_size=9 is not divisible by accum_steps=2"),
    ]
    for arguments, expected in cases:
        result = th.run_command(tmp_path / "cache", *th.overrides(workdir, corpus), *arguments)
        assert result.returncode == 1 and result.stdout == ""
        assert result.stderr.startswith(expected) and result.stderr.count("\n") == 1
        assert not workdir.exists()


# --- A full disk ------------------------------------------------------------------------------------


def on_small_disk(mount_point: Path, size: str, arguments: list[str], before: str, afterwards: str):
    """Runs train.py with a file system of `size` at `mount_point`, in a mount namespace of its own.

    `before` is Python that goes ahead of the command, `afterwards` shell that looks at what it left.
    """
    mount_point.mkdir()
    mount = f"mount -t tmpfs -o size={size} none {mount_point}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("needs a small file system, which takes user namespaces (unshare -rm mount)")
    script = f'{mount} && "$@"; code=$?; {afterwards}; exit $code'
    wrapper = ["unshare", "-rm", "sh", "-c", script, "-"]
    return th.run_command(mount_point.parent / "cache", *arguments, before=before, wrapper=wrapper)


def disk_full(where: Path) -> str:
    return f"error: the disk is full while writing {where}: free some space, then run the same command again\n"


@pytest.mark.slow
def test_disk_full_while_tokenising(tmp_path):
    corpus = th.write_corpus(tmp_path / "corpus.jsonl", n_docs=20_000)
    small, workdir = tmp_path / "small", tmp_path / "run"
    arguments = th.overrides(workdir, corpus, data__cache_dir=small)
    result = on_small_disk(small, "100k", arguments, before="", afterwards=f"ls {small} >&2")
    assert result.returncode == 1 and not workdir.exists()
    error, *left = result.stderr.splitlines(keepends=True)
    assert error == disk_full(small)
    assert left and not [name for name in left if ".tmp" in name]


# The check before a save says that there is enough, as it would where a quota or another process is in the way.
BLIND = """
import shutil
disk_usage = shutil.disk_usage
shutil.disk_usage = lambda path: disk_usage("/")
"""


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", BLIND], ids=["foreseen", "unforeseen"])
def test_disk_full_while_saving(tmp_path, corpus, before):
    """A save runs beside the steps; its error still arrives, and what was saved before is still good."""
    small, kept = tmp_path / "small", tmp_path / "kept"
    arguments = th.overrides(small / "run", corpus)
    result = on_small_disk(small, "6m", arguments, before, afterwards=f"cp -r {small}/run {kept}")
    assert result.returncode == 1
    if before:  # writes that fail after the first one may complain by themselves, even after our sentence
        assert disk_full(small / "run" / "checkpoints") in result.stderr
    else:
        assert result.stderr == disk_full(small / "run" / "checkpoints")
    assert th.checkpoint_steps(kept) == [4, 8]
    assert len(th.checkpoint(kept, 8)) > 30
    # With space again, the same run goes on.
    result = th.run_command(tmp_path / "cache", *th.overrides(kept, corpus))
    assert result.returncode == 0 and th.resumed_from(result.stdout) == 8, result.stderr
