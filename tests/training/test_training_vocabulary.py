"""`init_from` under other tokenizers, through the training command: refused with a way on, or resized, never silent."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import training_helpers as th
from tokenizer_variants import write_variant

from convert import to_hf
from minimind_jax.errors import UserError
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.tokenizer.load import SHIPPED
from minimind_jax.workdir import load_init, load_model

STAGES = {"pretrain": "pretrain", "sft": "sft_512", "dpo": "dpo"}
RESIZE = "--config.tokenizer_change=resize"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("files")
    return {
        "pretrain": th.write_corpus(directory / "corpus.jsonl"),
        "sft": th.write_chats(directory / "sft.jsonl"),
        "dpo": th.write_pairs(directory / "dpo.jsonl"),
    }


@pytest.fixture(scope="module", params=[True, pytest.param(False, marks=pytest.mark.slow)], ids=["tied", "untied"])
def base(request, tmp_path_factory, files) -> Path:
    workdir = tmp_path_factory.mktemp("base") / "run"
    th.run_here(*th.overrides(workdir, files["pretrain"], steps=2, model__tie_embeddings=request.param))
    return workdir


@pytest.fixture(scope="module")
def tied(tmp_path_factory, files) -> Path:
    workdir = tmp_path_factory.mktemp("tied") / "run"
    th.run_here(*th.overrides(workdir, files["pretrain"], steps=2))
    return workdir


@pytest.fixture(scope="module")
def variants(tmp_path_factory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("tokenizers")
    template = (SHIPPED / "chat_template.jinja").read_text("utf-8")
    return {
        "one more": write_variant(directory / "more", added=("<|extra|>",)),
        "other ids": write_variant(directory / "ids", shuffle=1),
        "2,000 entries": write_variant(directory / "small", n_merges=1728, shuffle=2),
        "template": write_variant(directory / "template", template="{#- mine -#}\n" + template),
    }


def arguments(stage: str, workdir: Path, files: dict[str, Path], init_from: Path, **changes: Any) -> list[str]:
    values = {"data__max_seq_len": 64, "steps": 1, "init_from": init_from, "optim__lr": 1e-9, "optim__warmup_steps": 0}
    return th.overrides(workdir, files[stage], STAGES[stage], **values | changes)


def refused(*flags: str) -> str:
    with pytest.raises(UserError) as error:
        th.run_here(*flags)
    return str(error.value)


def copy_until(workdir: Path, copy: Path, step: int) -> None:
    """The workdir as a kill after the checkpoint of `step` would have left it."""
    shutil.copytree(workdir, copy)
    for later in th.checkpoint_steps(copy):
        if later > step:
            shutil.rmtree(copy / "checkpoints" / str(later))


def assert_rows_moved(before: Path, after: Path, size: int) -> None:
    """Each row of embedding and head is that of the same text before, or the mean (of a step that changes nothing)."""
    old, (model, new) = load_init(before)[1], load_init(after)
    old_tokenizer, tokenizer = load_model(before).tokenizer, load_model(after).tokenizer
    assert model.vocab_size == size
    pairs = [(old["embed"], new["embed"])]
    if not model.tie_embeddings:
        pairs.append((old["lm_head"].T, new["lm_head"].T))
    theirs = {i: entry for entry, i in tokenizer.vocabulary.items()}
    for rows, changed in pairs:
        assert changed.shape == (size, model.dim)
        mean = rows[: old_tokenizer.vocab_size].mean(0)
        for i in range(size):
            row = old_tokenizer.vocabulary.get(theirs.get(i, ""))
            expected = mean if row is None else rows[row]
            np.testing.assert_allclose(changed[i], expected, rtol=1e-5, atol=1e-6, err_msg=f"{i} {theirs.get(i)}")
    np.testing.assert_allclose(new["blocks"]["attn"]["q"], old["blocks"]["attn"]["q"], atol=1e-6)


# --- Refused, and the advice helps ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("which", "size"), [("one more", 6528), ("other ids", 6400), ("2,000 entries", 2048)])
def test_another_vocabulary_is_refused_and_the_advice_helps(base, variants, files, tmp_path, which, size):
    flags = arguments("pretrain", tmp_path / "run", files, base, tokenizer=variants[which])
    message = refused(*flags)
    assert f"tokenizer {variants[which]} is not the one that init_from {base} was trained with" in message
    assert "\n" not in message and not (tmp_path / "run").exists()
    (advice,) = re.findall(r"--config\.tokenizer_change=\w+", message)
    th.run_here(*flags, advice)
    assert_rows_moved(base, tmp_path / "run", size)
    # The other way on that it names.
    assert "leave --config.tokenizer unset" in message
    th.run_here(*arguments("pretrain", tmp_path / "own", files, base))
    assert load_model(tmp_path / "own").tokenizer.fingerprint == load_tokenizer().fingerprint


@pytest.mark.slow
def test_a_directory_whose_tokenizer_has_more_entries_than_its_model_has_rows(tied, files, tmp_path):
    """What transformers leaves after `add_tokens` without `resize_token_embeddings`."""
    exported = tmp_path / "hf"
    to_hf.export(load_model(tied), exported)
    shutil.copyfile(
        write_variant(tmp_path / "more", added=("<|extra|>",)) / "tokenizer.json", exported / "tokenizer.json"
    )
    with pytest.raises(UserError, match=f"do not belong together.*--config.init_from={exported} {RESIZE}$"):
        load_model(exported)
    flags = arguments("sft", tmp_path / "run", files, exported)
    message = refused(*flags)
    assert "has 6401 entries" in message and "only 6400 rows" in message and RESIZE in message
    th.run_here(*flags, RESIZE)
    after = load_model(tmp_path / "run")
    assert after.config.vocab_size == 6528 and after.tokenizer.vocab_size == 6401
    before = load_init(tied)[1]["embed"]
    np.testing.assert_allclose(after.params["embed"][:6400], before, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after.params["embed"][6400], before.mean(0), rtol=1e-5, atol=1e-6)
    to_hf.export(after, tmp_path / "out")
    assert load_model(tmp_path / "out").tokenizer.vocab_size == 6401


@pytest.mark.slow
def test_the_size_that_is_set_counts_where_it_is_large_enough(tied, variants, files, tmp_path):
    flags = arguments("pretrain", tmp_path / "run", files, tied, tokenizer=variants["one more"])
    message = refused(*flags, "--config.model.vocab_size=6401")
    assert "model.vocab_size=6401 contradicts init_from" in message and RESIZE in message
    message = refused(*flags, RESIZE, "--config.model.vocab_size=6400")
    assert "model.vocab_size=6400 is less than the 6401 entries" in message
    assert not (tmp_path / "run").exists()
    th.run_here(*flags, RESIZE, "--config.model.vocab_size=6401")
    assert_rows_moved(tied, tmp_path / "run", 6401)
    flags = arguments("pretrain", tmp_path / "unset", files, tied, tokenizer=variants["one more"])
    th.run_here(*flags, RESIZE, "--config.model.vocab_size=0")
    assert load_init(tmp_path / "unset")[0].vocab_size == 6528


def test_resize_without_a_change_changes_nothing(tied, files, tmp_path):
    for name, more in {"plain": [], "resized": [RESIZE]}.items():
        th.run_here(*arguments("pretrain", tmp_path / name, files, tied, optim__lr=1e-2, steps=2), *more)
    th.assert_same_checkpoint(tmp_path / "plain", tmp_path / "resized", 2)
    assert "leave it unset" in refused(*th.overrides(tmp_path / "scratch", files["pretrain"]), RESIZE)


@pytest.mark.slow
def test_another_template_alone_is_said_and_taken(tied, variants, files, tmp_path, capsys):
    th.run_here(*arguments("sft", tmp_path / "run", files, tied, tokenizer=variants["template"]))
    out = " ".join(capsys.readouterr().out.split())
    assert f"{variants['template']} has the entries of {tied / 'tokenizer'}, but another chat template" in out
    assert load_model(tmp_path / "run").tokenizer.template_source["default"].startswith("{#- mine")
    th.run_here(*arguments("sft", tmp_path / "own", files, tied))
    assert "has the entries of" not in capsys.readouterr().out


# --- Every stage, device layout and continuation ------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("form", ["workdir", "hf"])
def test_every_stage_resizes_and_goes_on_exactly(stage, form, tied, variants, files, tmp_path, capsys):
    source = tied
    if form == "hf":
        to_hf.export(load_model(tied), source := tmp_path / "hf")
    changes: dict[str, Any] = {"tokenizer": variants["2,000 entries"], "optim__lr": 1e-3, "save_every": 2}
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    th.run_here(*arguments(stage, whole, files, source, steps=4, **changes), RESIZE)
    copy_until(whole, halves, 2)
    said = " ".join(capsys.readouterr().out.split())
    assert f"vocabulary of {source} resized from 6400 to 2048 rows: 2000 of 2000 tokens keep theirs, 0 begin" in said
    # A run that has begun needs neither init_from nor the flag, and takes its own tokenizer.
    del changes["tokenizer"]
    identity = json.loads((halves / "config.json").read_text())["identity"]
    assert identity["model.vocab_size"] == 2048
    th.run_here(*arguments(stage, halves, files, source, steps=4, **changes))
    assert th.resumed_from(capsys.readouterr().out) == 2
    assert th.losses(whole) == th.losses(halves)
    th.assert_same_checkpoint(whole, halves, 4)


@pytest.mark.slow
def test_dpo_compares_with_the_resized_model(tied, variants, files, tmp_path):
    """Before the first update policy and reference are one: rewards are 0, the loss is log 2."""
    changes: dict[str, Any] = {"tokenizer": variants["2,000 entries"], "dpo__sft_weight": 0.0}
    th.run_here(*arguments("dpo", tmp_path / "run", files, tied, **changes), RESIZE)
    (line,) = th.metrics(tmp_path / "run")
    assert line["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert line["rewards/margins"] == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"mesh__data": 8}, {"mesh__data": 2, "mesh__fsdp": 4}], ids=str)
def test_a_resized_run_is_the_same_on_several_devices(mesh, tied, variants, files, tmp_path):
    changes: dict[str, Any] = {"tokenizer": variants["one more"], "optim__lr": 1e-3, "steps": 2}
    th.run_here(*arguments("sft", tmp_path / "one", files, tied, **changes), RESIZE)
    th.run_here(*arguments("sft", tmp_path / "eight", files, tied, **changes | mesh), RESIZE)
    one, eight = (dict(th.losses(tmp_path / name)) for name in ("one", "eight"))
    assert one == pytest.approx(eight, rel=1e-5)


# --- Runs that have begun -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("init_from", [False, True])
def test_a_begun_run_keeps_its_tokenizer_when_the_shipped_one_changes(
    init_from, tied, variants, files, tmp_path, monkeypatch, capsys
):
    source = tied if init_from else ""
    whole, halves = tmp_path / "whole", tmp_path / "halves"

    def train(workdir: Path) -> None:
        th.run_here(*arguments("sft", workdir, files, source, steps=4, optim__lr=1e-3, save_every=2))

    train(whole)
    copy_until(whole, halves, 2)
    monkeypatch.setattr("minimind_jax.tokenizer.load.SHIPPED", variants["template"])
    train(halves)
    assert th.resumed_from(capsys.readouterr().out) == 2
    own = json.loads((halves / "config.json").read_text())["identity"]["tokenizer"]
    assert own == load_tokenizer(str(SHIPPED)).fingerprint != load_tokenizer().fingerprint
    th.assert_same_checkpoint(whole, halves, 4)


def test_a_run_that_logged_but_never_saved_keeps_its_tokenizer_too(variants, files, tmp_path, monkeypatch):
    th.run_here(*th.overrides(tmp_path / "run", files["pretrain"], steps=2))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    monkeypatch.setattr("minimind_jax.tokenizer.load.SHIPPED", variants["template"])
    th.run_here(*th.overrides(tmp_path / "run", files["pretrain"], steps=2))
    assert th.checkpoint_steps(tmp_path / "run") == [2]


@pytest.mark.slow
def test_a_begun_run_refuses_a_tokenizer_that_is_named_and_another(tied, variants, files, tmp_path):
    th.run_here(*arguments("sft", tmp_path / "run", files, tied))
    message = refused(*arguments("sft", tmp_path / "run", files, tied, tokenizer=variants["template"], steps=2))
    assert "tokenizer was" in message and "set these back" in message
    th.run_here(*arguments("sft", tmp_path / "run", files, tied, steps=2))
    assert th.checkpoint_steps(tmp_path / "run") == [1, 2]
