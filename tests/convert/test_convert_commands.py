"""The two commands: whole directories, nothing overwritten, nothing left behind, torch never imported."""

import dataclasses
import json
import os
import shutil

import gguf
import jax
import numpy as np
import pytest
from convert_helpers import LLAMA, QWEN3, command, edit_json, equal_bits, random_model, random_params

from convert import from_hf, output, to_gguf, to_hf
from minimind_jax import hf_format
from minimind_jax.config import RopeScaling
from minimind_jax.errors import UserError
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.workdir import Workdir, load_model, save_imported


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "workdir"
    save_imported(Workdir(path), QWEN3, random_params(QWEN3), load_tokenizer(), "test")
    return path


def run(main, *argv):
    """The message that a command exits with, or None."""
    try:
        main([str(a) for a in argv])
    except SystemExit as e:
        return str(e.code)


def snapshot(directory):
    return {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_workdir_to_hf_and_back_is_bit_identical(workdir, tmp_path):
    exported, imported = tmp_path / "deep" / "hf", tmp_path / "imported"
    assert run(to_hf.main, "--model", workdir, "--out", exported) is None
    assert run(from_hf.main, "--model", exported, "--out", imported) is None
    before, after = load_model(workdir), load_model(imported)
    assert equal_bits(after.params, before.params)
    assert (after.config, after.step) == (before.config, 0)
    assert after.tokenizer.fingerprint == before.tokenizer.fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "imported"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["hf"]
    assert Workdir(imported).read_config()["source"] == str(exported)


@pytest.mark.slow
def test_commands_end_to_end_without_torch(workdir, tmp_path):
    code = "import sys, runpy; sys.argv = sys.argv[1:]\ntry: runpy.run_module(sys.argv[0], run_name='__main__')\n"
    code += "finally: print('torch' in sys.modules or 'transformers' in sys.modules)"
    exported, imported = tmp_path / "hf", tmp_path / "imported"
    first = command("-c", code, "convert.to_hf", "--model", workdir, "--out", exported, "--dtype", "bfloat16")
    assert (first.returncode, first.stdout.split()[-1]) == (0, "False"), first.stderr
    second = command("-c", code, "convert.from_hf", "--model", exported, "--out", imported)
    assert (second.returncode, second.stdout.split()[-1]) == (0, "False"), second.stderr
    rounded = hf_format.cast_params(load_model(workdir).params, "bfloat16")
    expected = jax.tree.map(lambda a: a.astype(np.float32), rounded)
    assert equal_bits(load_model(imported).params, expected)
    again = command("-m", "convert.from_hf", "--model", exported, "--out", imported)
    assert again.returncode == 1
    assert again.stderr == f"error: {imported} exists already: name a workdir that is not there yet\n"


def test_existing_output_is_kept_without_force(workdir, tmp_path):
    out = tmp_path / "out"
    assert run(to_hf.main, "--model", workdir, "--out", out) is None
    before = snapshot(out)
    assert "exists already" in run(to_hf.main, "--model", workdir, "--out", out, "--dtype", "float16")
    assert snapshot(out) == before
    assert run(to_hf.main, "--model", workdir, "--out", out, "--dtype", "float16", "--force") is None
    assert json.loads((out / "config.json").read_text())["dtype"] == "float16"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_force_replaces_nothing_but_an_exported_model(workdir, tmp_path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("precious")
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    before = snapshot(tmp_path)
    for name in ("file", "photos", "copy", "link", "."):
        message = run(to_hf.main, "--model", workdir, "--out", tmp_path / name, "--force")
        assert "--force does not replace it" in message, name
    assert snapshot(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert run(to_hf.main, "--model", workdir, "--out", tmp_path / "empty", "--force") is None


def test_force_does_not_delete_the_model_that_it_reads(workdir, tmp_path):
    outer = tmp_path / "outer"
    assert run(to_hf.main, "--model", workdir, "--out", outer) is None
    shutil.copytree(workdir, outer / "inner")
    assert "contains the model" in run(to_hf.main, "--model", outer / "inner", "--out", outer, "--force")
    assert load_model(outer / "inner").step == 0


def test_a_model_can_be_exported_onto_itself_in_another_dtype(workdir, tmp_path):
    out = tmp_path / "out"
    assert run(to_hf.main, "--model", workdir, "--out", out) is None
    assert run(to_hf.main, "--model", out, "--out", out, "--dtype", "bfloat16", "--force") is None
    assert load_model(out).tokenizer.fingerprint == load_model(workdir).tokenizer.fingerprint


def test_a_failed_verification_removes_the_output_and_keeps_the_old_one(tmp_path, monkeypatch):
    out = tmp_path / "out"
    to_hf.export(random_model(LLAMA, seed=1), out)
    before, write = snapshot(out), hf_format.write_params

    def corrupt(directory, params, *rest):
        params = jax.tree.map(np.array, params)
        params["blocks"]["attn"]["k"].view(np.uint32)[0, 0, 0] ^= 1
        write(directory, params, *rest)

    monkeypatch.setattr(hf_format, "write_params", corrupt)
    with pytest.raises(UserError, match=r"parameter blocks\.attn\.k reads back differently"):
        to_hf.export(random_model(LLAMA), out, force=True)
    assert snapshot(out) == before
    with pytest.raises(UserError, match="reads back differently"):
        to_hf.export(random_model(LLAMA), tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_interrupted_export_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(hf_format, "write_params", interrupt)
    with pytest.raises(KeyboardInterrupt):
        to_hf.export(random_model(LLAMA), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_rename_that_fails_puts_the_old_directory_back(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    with pytest.raises(UserError, match="cannot be created"), output.new_directory(out) as temporary:
        temporary.rmdir()  # so that its rename fails
    assert [p.name for p in out.iterdir()] == ["old"] and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_overflow_leaves_nothing(tmp_path):
    model = random_model(LLAMA)
    model.params["embed"][7, 3] = -1e6
    with pytest.raises(UserError, match=r"embed holds 1e[+]06, beyond float16's range"):
        to_hf.export(model, tmp_path / "out", "float16")
    assert not list(tmp_path.iterdir())


def test_unused_fields_of_rope_scaling_do_not_matter(tmp_path):
    config = dataclasses.replace(LLAMA, rope_scaling=RopeScaling("none", 4.0, 128))
    to_hf.export(random_model(config), tmp_path / "out")
    assert load_model(tmp_path / "out").config.rope_scaling == RopeScaling()


@pytest.mark.parametrize(
    ("command_main", "argv", "named"),
    [
        (to_hf.main, ("--model", "{here}/nothing"), "nothing is not a directory"),
        (to_hf.main, ("--model", "{here}"), "no config.json"),
        (to_hf.main, ("--model", "{workdir}", "--step", "7"), "no checkpoint of step 7"),
        (from_hf.main, ("--model", "{here}/nothing"), "nothing"),
        (from_hf.main, ("--model", "{workdir}"), "is a workdir already"),
    ],
)
def test_bad_input_is_one_sentence(command_main, argv, named, workdir, tmp_path):
    argv = [a.format(here=tmp_path, workdir=workdir) for a in argv]
    message = run(command_main, *argv, "--out", tmp_path / "out")
    assert message.startswith("error: ") and named in message and "\n" not in message
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(workdir, tmp_path):
    (tmp_path / "file").touch()
    message = run(to_hf.main, "--model", workdir, "--out", tmp_path / "file" / "out")
    assert "cannot be created" in message
    assert os.listdir(tmp_path) == ["file"]


def test_an_hf_directory_without_tokenizer_is_named(workdir, tmp_path):
    assert run(to_hf.main, "--model", workdir, "--out", tmp_path / "hf") is None
    (tmp_path / "hf" / "tokenizer.json").unlink()
    assert "tokenizer.json" in run(from_hf.main, "--model", tmp_path / "hf", "--out", tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


def test_yarn_lengths_that_older_transformers_would_misread_are_warned_of(tmp_path, capsys):
    config = dataclasses.replace(QWEN3, max_seq_len=300)
    save_imported(Workdir(tmp_path / "w"), config, random_params(config), load_tokenizer(), "test")
    assert run(to_hf.main, "--model", tmp_path / "w", "--out", tmp_path / "hf") is None
    assert "warning: model.max_seq_len=300" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["hf", "gguf"])
def test_yarn_can_be_set_at_the_export(target, tmp_path, capsys):
    config = dataclasses.replace(LLAMA, max_seq_len=32768)
    save_imported(Workdir(tmp_path / "w"), config, random_params(config), load_tokenizer(), "test")
    command_main, out = (to_hf.main, tmp_path / "hf") if target == "hf" else (to_gguf.main, tmp_path / "m.gguf")
    argv = ("--model", tmp_path / "w", "--out", out, "--yarn-factor", 4)
    assert "does not say which length it was trained at" in run(command_main, *argv)
    assert run(command_main, *argv, "--yarn-original", 128) is None
    assert capsys.readouterr().err == ""  # 4 x 128 is the limit of positions now: no engine reads another factor
    if target == "hf":
        read = load_model(out)
        assert read.config == dataclasses.replace(config, max_seq_len=512, rope_scaling=RopeScaling("yarn", 4.0, 128))
        assert equal_bits(read.params, load_model(tmp_path / "w").params)
    else:
        fields = gguf.GGUFReader(out).fields
        keys = ["rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "context_length"]
        assert [fields[f"llama.{key}"].contents() for key in keys] == ["yarn", 4.0, 128, 512]


@pytest.mark.parametrize("command_main", [to_hf.main, to_gguf.main])
def test_an_original_length_that_was_never_trained_is_warned_of_at_the_export(command_main, tmp_path, capsys):
    save_imported(Workdir(tmp_path / "w"), LLAMA, random_params(LLAMA), load_tokenizer(), "test")
    edit_json(tmp_path / "w" / "config.json", trained_max_seq_len=64)
    argv = ("--model", tmp_path / "w", "--yarn-factor", 4, "--yarn-original", 128)
    assert run(command_main, *argv, "--out", tmp_path / "out") is None
    assert "warning: rope_scaling.original_max_seq_len=128 was never trained" in capsys.readouterr().err
