"""Workdirs: what is read back, and what is said about directories that are none."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from minimind_jax import hf_format
from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.model import abstract_params
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.workdir import (
    FORMAT_VERSION,
    Workdir,
    is_workdir,
    load_model,
    model_config,
    read_metrics,
    read_params,
    save_imported,
    tokenizer_directory,
    write_atomically,
)

MODEL = ModelConfig(dim=8, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=16, max_seq_len=64, qk_norm=True)


def random_params(model: ModelConfig) -> dict:
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), abstract_params(model))


@pytest.fixture(scope="module")
def params() -> dict:
    return random_params(MODEL)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, params: dict) -> Workdir:
    workdir = Workdir(tmp_path_factory.mktemp("imported") / "model")
    save_imported(workdir, MODEL, params, load_tokenizer(), "somewhere")
    return workdir


def error(path: Path, step: int | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_model(path, step)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_an_imported_model_is_read_back_bit_for_bit(imported: Workdir, params: dict):
    model = load_model(imported.path)
    assert (model.config, model.step, model.path) == (MODEL, 0, imported.path)
    assert model.tokenizer.fingerprint == load_tokenizer().fingerprint
    assert jax.tree.structure(model.params) == jax.tree.structure(params)
    for ours, theirs in zip(jax.tree.leaves(model.params), jax.tree.leaves(params), strict=True):
        assert type(ours) is np.ndarray and ours.dtype == np.float32
        assert ours.tobytes() == theirs.tobytes()


def test_an_imported_model_has_one_step_and_no_optimiser(imported: Workdir):
    assert is_workdir(imported.path) and imported.steps() == [0]
    assert not (imported.checkpoints / "0" / "opt_state").exists()
    assert imported.read_config()["source"] == "somewhere"
    assert tokenizer_directory(imported.path) == imported.tokenizer


def test_a_hugging_face_directory_is_read_alike(tmp_path: Path, params: dict):
    tokenizer = load_tokenizer()
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    hf_format.write_config(tmp_path, MODEL, dtype="float32", **ids)
    hf_format.write_params(tmp_path, params, MODEL, "float32")
    tokenizer.save(tmp_path)
    model = load_model(tmp_path)
    assert model.config == model_config(tmp_path) == MODEL and model.step == 0
    jax.tree.map(np.testing.assert_array_equal, model.params, params)
    assert tokenizer_directory(tmp_path) == tmp_path and not is_workdir(tmp_path)
    assert "has no steps" in error(tmp_path, step=3)


def test_what_is_no_model_directory(tmp_path: Path):
    assert "is not a directory" in error(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    assert "is not a directory" in error(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in error(tmp_path / "empty")


def test_a_workdir_without_the_checkpoint(imported: Workdir, tmp_path: Path):
    assert "has no checkpoint of step 7; it has 0" in error(imported.path, step=7)
    fresh = Workdir(tmp_path)
    fresh.checkpoints.mkdir()
    fresh.write_config({"model": MODEL.to_dict()})
    assert "has no checkpoint yet" in error(tmp_path)


def test_unfinished_saves_do_not_count(tmp_path: Path):
    workdir = Workdir(tmp_path)
    assert workdir.steps() == []
    for name in ("20", "5", "100", "30.orbax-checkpoint-tmp-7", "notes"):
        (workdir.checkpoints / name).mkdir(parents=True)
    assert workdir.steps() == [5, 20, 100]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is damaged"),
        ('{"model": ', "is damaged"),
        ("[]", "was not written by this version"),
        ('{"model": {}}', "was not written by this version"),
        ('{"format_version": 999, "model": {}}', "was not written by this version"),
        (f'{{"format_version": {FORMAT_VERSION}}}', "was not written by this version"),
        (f'{{"format_version": {FORMAT_VERSION}, "model": "x"}}', "was not written by this version"),
        ("[" * 100_000, "is damaged"),
    ],
)
def test_a_damaged_config_is_named(tmp_path: Path, content: str, words: str):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(content)
    message = error(tmp_path)
    assert words in message and str(tmp_path / "config.json") in message


def test_a_config_that_is_not_utf8_is_named(tmp_path: Path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        Workdir(tmp_path).read_config()


def test_files_that_cannot_be_read(tmp_path: Path):
    for read, name in ((Workdir.read_config, "config.json"), (read_metrics, "metrics.jsonl")):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=rf"{name} cannot be read: Is a directory"):
            read(Workdir(tmp_path))


@pytest.mark.parametrize("line", ["", "3", "{", '{"loss": 1}', '{"step": "2"}', '{"step": null}', "[" * 100_000])
def test_a_damaged_line_of_metrics_is_named_and_may_be_deleted(tmp_path: Path, line: str):
    workdir = Workdir(tmp_path)
    workdir.metrics.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n{{"ste')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is damaged: delete this line"):
        read_metrics(workdir)
    workdir.metrics.write_text(workdir.metrics.read_text().replace(f"\n{line}\n", "\n", 1))
    assert read_metrics(workdir) == [{"step": 1}, {"step": 3}]


def test_a_config_without_a_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"is not a workdir: it has no config\.json"):
        Workdir(tmp_path).read_config()


@pytest.mark.parametrize("change", [{"dim": 16}, {"n_layers": 1}, {"ffn_dim": 32}, {"qk_norm": False}])
def test_a_config_that_is_not_the_checkpoints_is_refused(imported: Workdir, change: dict):
    with pytest.raises(UserError, match=rf"{imported.checkpoints / '0'} is .*not of the model"):
        read_params(imported, 0, dataclasses.replace(MODEL, **change))


def test_a_torn_checkpoint_is_refused(tmp_path: Path, params: dict):
    workdir = Workdir(tmp_path / "w")
    save_imported(workdir, MODEL, params, load_tokenizer(), "")
    for file in (workdir.checkpoints / "0" / "params").rglob("d/*"):
        file.unlink()
    message = error(workdir.path)
    assert str(workdir.checkpoints / "0") in message and "damaged" in message and "\n" not in message


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path: Path):
    small = dataclasses.replace(MODEL, vocab_size=64)
    save_imported(Workdir(tmp_path), small, random_params(small), load_tokenizer(), "")
    message = error(tmp_path)
    assert f"its tokenizer has {load_tokenizer().vocab_size} entries" in message and "vocab_size is 64" in message


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "f"
    write_atomically(path, "old")
    write_atomically(path, "新")
    assert path.read_text("utf-8") == "新"
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text("utf-8") == "新" and list(tmp_path.iterdir()) == [path]


def test_the_config_file_is_json_with_its_version(tmp_path: Path):
    workdir = Workdir(tmp_path)
    workdir.write_config({"model": MODEL.to_dict()})
    assert json.loads(workdir.config.read_text())["format_version"] == FORMAT_VERSION
    assert ModelConfig.from_dict(workdir.read_config()["model"]) == MODEL
