"""What the training command says to do is done, to the letter, and helps."""

from __future__ import annotations

import fcntl
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import training_helpers as th
from tokenizer_variants import write_variant

from convert import to_hf
from minimind_jax.errors import UserError
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.workdir import Workdir, load_model, save_imported


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corpus) -> Path:
    workdir = tmp_path_factory.mktemp("trained") / "run"
    th.run_here(*th.overrides(workdir, corpus, steps=2))
    return workdir


def refused(*flags: str) -> str:
    with pytest.raises(UserError) as error:
        th.run_here(*flags)
    return str(error.value)


def succeed(line: str) -> None:
    """Runs `python LINE`."""
    argv = [sys.executable, *shlex.split(line)]
    done = subprocess.run(argv, cwd=th.REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def flags_in(message: str) -> list[str]:
    """`--config.KEY=VALUE` that a message spells out."""
    return re.findall(r"--config\.[a-z_.]+=[^\s:;,()]+", message)


@pytest.mark.slow
def test_a_tokenizer_that_is_too_large_for_a_fresh_model(corpus, tmp_path):
    more = write_variant(tmp_path / "more", added=("<|extra|>",))
    flags = th.overrides(tmp_path / "run", corpus, steps=1, tokenizer=more)
    message = refused(*flags)
    assert flags_in(message) == ["--config.model.vocab_size=6401"] and "multiple of 128" in message
    th.run_here(*flags, *flags_in(message))
    assert load_model(tmp_path / "run").config.vocab_size == 6401


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad", "advice"),
    [
        ({"attention": "cudnn"}, "attention=auto"),
        ({"attention": "triton"}, "attention=xla"),
        ({"mesh__data": -1, "mesh__fsdp": 3}, "mesh.fsdp=2"),  # "take a divisor"
        ({"mesh__data": 3}, "mesh.data=4"),  # batch_size is not divisible
        ({"mesh__data": 99}, "mesh.data=-1"),
        ({"log_to": "wandb"}, "log_to="),
        ({"log_to": "swanlab"}, "log_to="),
    ],
    ids=str,
)
def test_devices_attention_and_trackers(bad, advice, corpus, tmp_path, monkeypatch):
    for name in ("wandb", "swanlab"):
        monkeypatch.setitem(sys.modules, name, None)
    flags = th.overrides(tmp_path / "run", corpus, steps=1, **bad)
    message = refused(*flags)
    expected = {"mesh.fsdp=2": "take a divisor", "mesh.data=4": "not divisible", "mesh.data=-1": "there are 8"}
    assert expected.get(advice, advice.rstrip("=").replace("log_to", "leave it out of log_to")) in message
    th.run_here(*flags, f"--config.{advice}")
    assert th.checkpoint_steps(tmp_path / "run") == [1]


def test_directories_that_are_taken(trained, corpus, tmp_path):
    """A file, photos, another run, a run in use, an imported model: another workdir, or what was set back."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("mine")
    for name in ("file", "photos"):
        assert "choose another with --config.workdir=DIR" in refused(*th.overrides(tmp_path / name, corpus, steps=1))
    flags = th.overrides(trained, corpus, steps=3)
    message = refused(*flags, "--config.seed=5")
    assert "seed was 0, now 5" in message and "choose another --config.workdir" in message
    with open(trained / ".lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "choose another --config.workdir" in refused(*flags)
    th.run_here(*flags, "--config.seed=5", f"--config.workdir={tmp_path / 'another'}")
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    th.run_here(*flags, f"--config.workdir={copy}", "--config.seed=0")  # set back
    assert th.checkpoint_steps(copy)[-1] == 3


def test_an_imported_model_is_trained_from_by_the_flag_that_is_named(trained, corpus, tmp_path):
    model = load_model(trained)
    save_imported(Workdir(tmp_path / "imported"), model.config, model.params, model.tokenizer, "test")
    flags = th.overrides(tmp_path / "imported", corpus, steps=1)
    message = refused(*flags)
    (init_from,) = flags_in(message)
    assert init_from == f"--config.init_from={tmp_path / 'imported'}" and "another --config.workdir" in message
    th.run_here(*(f for f in flags if "config.model." not in f), init_from, f"--config.workdir={tmp_path / 'new'}")
    assert th.checkpoint_steps(tmp_path / "new") == [1]


def test_a_directory_of_minimind_becomes_an_init_from_by_the_command_that_is_named(trained, corpus, tmp_path):
    to_hf.export(load_model(trained), tmp_path / "theirs")
    file = tmp_path / "theirs" / "config.json"
    theirs = json.loads(file.read_text()) | {"architectures": ["MiniMindForCausalLM"], "model_type": "minimind"}
    file.write_text(json.dumps(theirs))
    flags = th.overrides(tmp_path / "run", corpus, steps=1, init_from=tmp_path / "theirs")
    message = refused(*flags)
    line = re.findall(r"`python (-m convert.from_hf [^`]*)`", message)[0].replace("WORKDIR", str(tmp_path / "imported"))
    done = subprocess.run(
        [sys.executable, *shlex.split(line)], cwd=th.REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    th.run_here(*flags, f"--config.init_from={tmp_path / 'imported'}")
    np.testing.assert_allclose(
        load_model(tmp_path / "imported").params["embed"], load_model(trained).params["embed"], rtol=1e-6
    )


def test_a_finished_run_goes_on_with_more_steps(trained, corpus, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    flags = th.overrides(tmp_path / "run", corpus, steps=2)
    th.run_here(*flags)
    assert "nothing to do (raise steps or epochs to train on)" in " ".join(capsys.readouterr().out.split())
    th.run_here(*flags, "--config.steps=3")
    assert th.checkpoint_steps(tmp_path / "run")[-1] == 3


@pytest.mark.slow
def test_the_commands_at_the_end_of_a_run_work(corpus, tmp_path, capsys):
    th.run_here(*th.overrides(tmp_path / "run", corpus, steps=2))
    lines = [line for line in capsys.readouterr().out.replace(" \n", " ").splitlines() if ":  " in line]
    commands = {line.split(":")[0]: line.split("python ", 1)[1] for line in lines if "python " in line}
    assert commands.keys() == {"curve", "score", "export"}
    for line in commands.values():
        succeed(line.replace("FILE.jsonl", str(corpus)))
    assert load_model(tmp_path / "run-hf").tokenizer.vocab_size == load_tokenizer().vocab_size


@pytest.mark.slow
def test_warm_up_and_yarn_warnings_stop_when_they_are_heeded(corpus, tmp_path, capsys):
    yarn = {"model__rope_scaling__type": "yarn", "model__rope_scaling__factor": 2.0}
    bad = {"steps": 2, "optim__warmup_steps": 2, "model__rope_scaling__original_max_seq_len": 64} | yarn
    th.run_here(*th.overrides(tmp_path / "bad", corpus, **bad))
    said = " ".join(capsys.readouterr().out.split())
    assert "optim.warmup_steps=2 is not reached in 2 steps" in said
    (length,) = re.findall(r"original_max_seq_len=64 was never trained.*?; set it to (\d+)", said) or [None]
    assert length == str(th.SEQ_LEN), said
    good = bad | {"optim__warmup_steps": 1, "model__rope_scaling__original_max_seq_len": length}
    th.run_here(*th.overrides(tmp_path / "good", corpus, **good))
    assert "warning:" not in capsys.readouterr().out


def test_a_damaged_line_of_metrics_is_deleted(trained, corpus, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    file = tmp_path / "run" / "metrics.jsonl"
    good = file.read_text()
    file.write_text("{half\n" + good)
    message = refused(*th.overrides(tmp_path / "run", corpus, steps=2))
    assert f"{file}:1 is damaged: delete this line" in message
    file.write_text(good)
    th.run_here(*th.overrides(tmp_path / "run", corpus, steps=2))
    assert json.loads(file.read_text().splitlines()[-1])["step"] == 2
