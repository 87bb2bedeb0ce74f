"""How long the rows of training were, over all runs; YaRN set by hand; and what is warned of."""

import argparse
import dataclasses
import json
from pathlib import Path

import pytest

from minimind_jax.config import ModelConfig, RopeScaling
from minimind_jax.errors import UserError
from minimind_jax.long_context import (
    add_yarn_options,
    apply_yarn_options,
    beyond_warning,
    trained_length,
    untrained_original_warning,
    with_yarn,
)
from minimind_jax.workdir import LoadedModel

MODEL = ModelConfig(dim=32, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=6400)


def make_workdir(path: Path, rows: int, init_from: Path | None = None, **more) -> Path:
    """A workdir as an older version left it; `more` are further keys of config.json."""
    (path / "checkpoints").mkdir(parents=True)
    values = {
        "format_version": 1,
        "model": MODEL.to_dict(),
        "data": {"max_seq_len": rows},
        "identity": {"init_from": str(init_from or "")},
    }
    (path / "config.json").write_text(json.dumps(values | more))
    return path


def scaled(factor: float, original: int) -> ModelConfig:
    return dataclasses.replace(MODEL, rope_scaling=RopeScaling("yarn", factor, original))


def loaded(path: Path, config: ModelConfig = MODEL) -> LoadedModel:
    return LoadedModel(config, {}, None, 0, path)  # neither weights nor tokenizer matter here


def test_the_longest_rows_of_all_runs_count(tmp_path):
    first = make_workdir(tmp_path / "pretrain", 512)
    second = make_workdir(tmp_path / "sft", 2048, first)
    third = make_workdir(tmp_path / "dpo", 1024, second)
    assert [trained_length(path) for path in (first, second, third)] == [512, 2048, 2048]


def test_what_a_run_recorded_survives_the_runs_before_it(tmp_path):
    gone = tmp_path / "gone"
    recorded = make_workdir(tmp_path / "sft", 512, gone, trained_max_seq_len=2048)
    assert trained_length(recorded) == 2048
    assert trained_length(make_workdir(tmp_path / "old", 512, recorded)) == 2048
    assert trained_length(make_workdir(tmp_path / "longer", 4096, recorded)) == 4096
    assert trained_length(make_workdir(tmp_path / "unknown", 512, gone, trained_max_seq_len=None)) is None


def test_nobody_knows_of_imported_and_foreign_models(tmp_path):
    hf = tmp_path / "hf"
    hf.mkdir()
    (hf / "config.json").write_text("{}")
    imported = make_workdir(tmp_path / "imported", 512)
    values = json.loads((imported / "config.json").read_text())
    del values["identity"]
    (imported / "config.json").write_text(json.dumps(values))
    for source in (hf, imported, tmp_path / "gone"):
        assert trained_length(source) is None
        assert trained_length(make_workdir(tmp_path / f"from-{source.name}", 512, source)) is None


def test_workdirs_that_name_each_other_end_the_search(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    make_workdir(a, 512, b), make_workdir(b, 1024, a)
    assert trained_length(a) is None


@pytest.mark.parametrize(
    ("model", "trained", "warned"),
    [
        (scaled(4, 2048), 512, True),
        (scaled(4, 2048), 2047, True),
        (scaled(4, 2048), 2048, False),
        (scaled(4, 2048), None, False),
        (MODEL, 512, False),
    ],
)
def test_an_original_length_that_was_never_trained_is_warned_of(model, trained, warned):
    warning = untrained_original_warning(model, trained)
    assert bool(warning) == warned
    if warned:
        assert f"original_max_seq_len=2048 was never trained, the longest rows were of {trained} tokens" in warning


def test_yarn_by_hand_takes_the_trained_length(tmp_path):
    model = loaded(make_workdir(tmp_path / "run", 512))
    stretched = with_yarn(model, 4.0)
    assert stretched.config == dataclasses.replace(MODEL, rope_scaling=RopeScaling("yarn", 4.0, 512), max_seq_len=2048)
    assert with_yarn(model, 2.5, 100).config.rope_scaling == RopeScaling("yarn", 2.5, 100)
    with pytest.raises(UserError, match=r"has YaRN already, factor 4 of 512 tokens"):
        with_yarn(stretched, 2.0)
    with pytest.raises(UserError, match="does not say which length it was trained at: add --yarn-original"):
        with_yarn(loaded(tmp_path / "gone"), 4.0)
    for factor in (1.0, 0.5, float("nan"), float("inf")):
        with pytest.raises(UserError, match="must be above 1"):
            with_yarn(model, factor)
    with pytest.raises(UserError, match="--yarn-original 0 must be at least 1"):
        with_yarn(model, 4.0, 0)


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_yarn_options(parser)
    return parser.parse_args(argv)


def test_the_options_of_the_commands(tmp_path):
    model = loaded(make_workdir(tmp_path / "run", 512))
    assert apply_yarn_options(model, parsed()) == (model, "")
    stretched, warning = apply_yarn_options(model, parsed("--yarn-factor", "4"))
    assert (stretched.config.rope_scaling, warning) == (RopeScaling("yarn", 4.0, 512), "")
    stretched, warning = apply_yarn_options(model, parsed("--yarn-factor", "4", "--yarn-original", "2048"))
    assert stretched.config.max_seq_len == 8192 and "2048 was never trained" in warning
    with pytest.raises(UserError, match="belongs to --yarn-factor"):
        apply_yarn_options(model, parsed("--yarn-original", "2048"))


def test_documents_beyond_what_was_trained_are_warned_of(tmp_path):
    run = make_workdir(tmp_path / "run", 512)

    def warning(model, longest):
        return beyond_warning(model, longest, "documents", "look")

    assert warning(loaded(run), 512) == ""
    assert "of up to 513 tokens are longer than the 512 tokens of the longest rows" in warning(loaded(run), 513)
    assert warning(loaded(run, scaled(4, 512)), 2048) == ""
    assert "than the 2,048 tokens that its YaRN reaches" in warning(loaded(run, scaled(4, 512)), 2049)
    assert warning(loaded(run, scaled(2, 128)), 512) == ""  # trained further than YaRN's reach
    assert warning(loaded(tmp_path / "gone"), 10**6) == ""  # nobody knows
