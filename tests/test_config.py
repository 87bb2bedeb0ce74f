"""The typed config: what is refused and in which words, what is derived, what `init_from` decides."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind_jax.config import Config, ModelConfig, RopeScaling, from_recipe
from minimind_jax.errors import UserError
from minimind_jax.model import count_params
from minimind_jax.recipe import MODEL_PRESETS

VALID: dict[str, Any] = {
    "stage": "pretrain",
    "workdir": "out",
    "steps": 10,
    "model": {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 1024},
    "data": {"path": "a.jsonl"},
    "optim": {},
}


def with_values(**values: Any) -> dict[str, Any]:
    """VALID with dotted keys replaced, written `data__path`."""
    out = copy.deepcopy(VALID)
    for name, value in values.items():
        *sections, key = name.split("__")
        target = out
        for section in sections:
            target = target.setdefault(section, {})
        target[key] = value
    return out


def error(**values: Any) -> str:
    with pytest.raises(UserError) as caught:
        from_recipe(with_values(**values))
    assert "\n" not in str(caught.value)
    return str(caught.value)


NUMBERS_OUT_OF_RANGE = [
    *[(key, value) for key in ("batch_size", "accum_steps", "scan_unroll", "keep") for value in (0, -1)],
    *[(key, -1) for key in ("seed", "steps", "log_every", "eval_every", "save_every")],
    ("seed", 2**31),
    *[(key, value) for key in ("epochs", "optim__weight_decay", "optim__grad_clip") for value in (-0.1, math.nan)],
    *[(f"model__{key}", 0) for key in ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")],
    *[(f"model__{key}", -1) for key in ("dim", "n_layers", "head_dim", "ffn_dim", "vocab_size")],
    *[(f"model__{key}", value) for key in ("rope_theta", "norm_eps") for value in (0.0, -1.0, math.nan, math.inf)],
    ("model__head_dim", 7),
    ("model__rope_scaling__factor", 0.5),
    ("model__rope_scaling__factor", -2.0),
    ("model__rope_scaling__original_max_seq_len", -1),
    ("data__max_seq_len", 0),
    ("data__max_seq_len", -512),
    ("data__num_workers", -1),
    *[(f"data__{key}", value) for key in ("val_fraction", "max_bad_share") for value in (-0.1, 1.5, math.nan)],
    ("data__val_fraction", 1.0),
    *[("optim__lr", value) for value in (0.0, -1e-3, math.nan, math.inf)],
    *[("optim__min_lr_ratio", value) for value in (-0.1, 1.1)],
    *[("optim__decay_ratio", value) for value in (-0.1, 1.1)],
    ("optim__warmup_steps", -1),
    *[(f"optim__{key}", value) for key in ("b1", "b2") for value in (-0.1, 1.0, 1.1, math.nan)],
    *[(f"mesh__{key}", value) for key in ("data", "fsdp") for value in (0, -2)],
]


@pytest.mark.parametrize(("key", "value"), NUMBERS_OUT_OF_RANGE)
def test_a_nonsensical_number_is_refused_by_its_key(key: str, value: float):
    assert error(**{key: value}).startswith(key.replace("__", "."))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stage", "pretrian"),
        ("remat", "some"),
        ("attention", "flash"),
        ("log_to", "mlflow,tensorboard"),
        ("precision__compute", "fp32"),
        ("precision__params", "int8"),
        ("model__rope_scaling__type", "linear"),
        ("data__truncate", "left"),
        ("optim__name", "sgd"),
        ("optim__schedule", "linear"),
    ],
)
def test_an_unknown_choice_names_the_key_and_the_choices(key: str, value: str):
    message = error(**{key: value})
    assert message.startswith(key.replace("__", ".")) and "is not one of" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", "ten"),
        ("steps", 1.5),
        ("steps", True),
        ("seed", None.__class__),
        ("epochs", "1"),
        ("workdir", 3),
        ("deterministic", 1),
        ("sample_prompts", "one"),
        ("sample_prompts", 5),
        ("sample_prompts", ("a", 5)),
        ("model", 5),
        ("model__dim", 64.0),
        ("model__qk_norm", "yes"),
        ("data__path", ["a.jsonl"]),
        ("optim__lr", "fast"),
        ("mesh", "all"),
    ],
)
def test_a_wrong_type_is_refused_by_its_key(key: str, value: Any):
    assert error(**{key: value}).startswith(key.replace("__", "."))


def test_an_integer_is_a_fine_float():
    assert from_recipe(with_values(epochs=2)).epochs == 2.0


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [("bach_size", "batch_size"), ("model__n_layer", "n_layers"), ("data__max_seqlen", "max_seq_len")],
)
def test_an_unknown_key_is_answered_with_the_nearest(key: str, suggestion: str):
    assert error(**{key: 1}) == f"unknown config key {key.replace('__', '.')}: did you mean {suggestion}?"


@pytest.mark.parametrize("key", ["stage", "model", "data"])
def test_a_missing_key_is_named(key: str):
    values = copy.deepcopy(VALID)
    del values[key]
    with pytest.raises(UserError, match=f"config key {key} is not set"):
        from_recipe(values)


@pytest.mark.parametrize("key", ["compute", "params"])
def test_float16_is_refused_with_its_reason(key: str):
    message = error(**{f"precision__{key}": "float16"})
    assert f"precision.{key}=float16" in message and "exponent" in message and "bfloat16" in message


def test_combinations_that_cannot_be():
    assert "steps and epochs are both 0" in error(steps=0)
    assert "workdir is empty" in error(workdir="")
    assert "data.path is empty" in error(data__path="")
    assert "batch_size=10 is not divisible by accum_steps=3" in error(batch_size=10, accum_steps=3)
    assert "model.n_heads=4 is not a multiple of model.n_kv_heads=3" in error(model__n_kv_heads=3)
    assert "model.dim=62 is not divisible by model.n_heads=4" in error(model__dim=62)
    assert "data.max_seq_len=2048 is longer than the model's limit model.max_seq_len=1024" in error(
        data__max_seq_len=2048
    )
    assert "data.val_path and data.val_fraction are both set" in error(data__val_path="v", data__val_fraction=0.1)
    assert "mesh.data and mesh.fsdp are both -1" in error(mesh__data=-1, mesh__fsdp=-1)
    assert "model.rope_scaling.original_max_seq_len=0" in error(model__rope_scaling__type="yarn")


def test_zero_sizes_are_derived():
    model = ModelConfig(dim=768, n_heads=8)
    assert (model.head_dim, model.ffn_dim) == (96, 2048)
    assert ModelConfig(dim=1024).ffn_dim == 2752  # 64 * ceil(42.67)
    assert ModelConfig(dim=100, n_heads=3, n_kv_heads=1, head_dim=32, ffn_dim=77).ffn_dim == 77


def formula(c: ModelConfig) -> int:
    """Parameters, counted by hand."""
    attention = 2 * c.dim * c.n_heads * c.head_dim + 2 * c.dim * c.n_kv_heads * c.head_dim
    layer = attention + 3 * c.dim * c.ffn_dim + 2 * c.dim + (2 * c.head_dim if c.qk_norm else 0)
    return c.vocab_size * c.dim * (1 if c.tie_embeddings else 2) + c.n_layers * layer + c.dim


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("minimind_1024", 183.8), ("minimind2_small", 26), ("minimind2", 104), ("minimind3", 64)],
)
def test_the_presets_have_the_published_sizes(preset: str, millions: float):
    config = ModelConfig(**MODEL_PRESETS[preset])
    assert count_params(config) == formula(config)
    digits = 1 if isinstance(millions, float) else 0
    assert round(formula(config) / 1e6, digits) == millions


BASE = ModelConfig(dim=96, n_layers=3, n_heads=6, n_kv_heads=3, head_dim=32, qk_norm=True, max_seq_len=2048)


def test_init_from_decides_what_the_user_leaves_unset():
    config = from_recipe(VALID, (), BASE)
    assert config.model == BASE
    assert from_recipe(VALID, ("batch_size", "data.path"), BASE).model == BASE


def test_only_what_the_user_set_is_compared_with_init_from():
    with pytest.raises(UserError, match=r"model\.dim=64 contradicts init_from, whose model has 96"):
        from_recipe(VALID, ("model.dim",), BASE)
    assert from_recipe(with_values(model__dim=96), ("model.dim",), BASE).model == BASE
    assert from_recipe(with_values(model__head_dim=0), ("model.head_dim",), BASE).model == BASE


def test_the_context_can_be_stretched_over_init_from():
    longer = with_values(
        model__max_seq_len=8192,
        model__rope_scaling={"type": "yarn", "factor": 4.0, "original_max_seq_len": 2048},
    )
    keys = ["max_seq_len", "rope_scaling.type", "rope_scaling.factor", "rope_scaling.original_max_seq_len"]
    model = from_recipe(longer, [f"model.{key}" for key in keys], BASE).model
    assert model == dataclasses.replace(BASE, max_seq_len=8192, rope_scaling=RopeScaling("yarn", 4.0, 2048))


def test_rows_longer_than_init_from_allows_are_refused():
    with pytest.raises(UserError, match=r"data\.max_seq_len=4096 is longer .* model\.max_seq_len=2048"):
        from_recipe(with_values(data__max_seq_len=4096, model__max_seq_len=9999), (), BASE)


def test_an_unknown_model_key_is_not_hidden_by_init_from():
    with pytest.raises(UserError, match=r"unknown config key model\.n_layer"):
        from_recipe(with_values(model__n_layer=4), (), BASE)


@st.composite
def valid_configs(draw: st.DrawFn) -> Config:
    kv_heads, accum = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    heads = kv_heads * draw(st.integers(1, 4))
    yarn = draw(st.booleans())
    max_seq_len = draw(st.integers(2, 40000))
    share = st.floats(0, 0.99)
    return from_recipe(
        with_values(
            seed=draw(st.integers(0, 2**31 - 1)),
            epochs=draw(st.floats(0, 1e6)),
            batch_size=accum * draw(st.integers(1, 512)),
            accum_steps=accum,
            remat=draw(st.sampled_from(["none", "dots", "full"])),
            sample_prompts=tuple(draw(st.lists(st.text(max_size=5), max_size=3))),
            model__n_heads=heads,
            model__n_kv_heads=kv_heads,
            model__dim=heads * 2 * draw(st.integers(1, 64)),
            model__ffn_dim=draw(st.integers(0, 4096)),
            model__vocab_size=draw(st.integers(1, 10**6)),
            model__max_seq_len=max_seq_len,
            model__rope_theta=draw(st.floats(1, 1e8)),
            model__qk_norm=draw(st.booleans()),
            model__tie_embeddings=draw(st.booleans()),
            model__rope_scaling={"type": "yarn", "factor": 4.0, "original_max_seq_len": 1} if yarn else {},
            data__max_seq_len=draw(st.integers(2, max_seq_len)),
            data__val_fraction=draw(share),
            optim__lr=draw(st.floats(1e-9, 10)),
            optim__b2=draw(share),
            mesh__fsdp=draw(st.integers(1, 8)),
        )
    )


@settings(max_examples=60, deadline=None)
@given(valid_configs())
def test_a_config_survives_its_dictionary_and_json(config: Config):
    assert from_recipe(config.to_dict()) == config
    assert from_recipe(json.loads(json.dumps(config.to_dict()))) == config
    assert ModelConfig.from_dict(config.model.to_dict()) == config.model
    assert config.model.head_dim > 0 and config.model.ffn_dim > 0


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["steps", "epochs", "workdir", "model", "model__dim", "optim__lr", "data__path", "sample_prompts"]),
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()), st.just({})),
)
def test_whatever_a_recipe_says_the_answer_is_a_config_or_one_sentence(key: str, value: Any):
    try:
        assert isinstance(from_recipe(with_values(**{key: value})), Config)
    except UserError as e:
        assert str(e)


def of_stage(stage: str, **changes: Any) -> dict[str, Any]:
    """A recipe of that stage with its section; `changes` are keys of the section."""
    values = with_values(stage=stage, init_from="out/before")
    values[stage] = changes
    return values


@pytest.mark.parametrize(
    ("stage", "changes", "words"),
    [
        ("dpo", {"loss": "kto"}, "dpo.loss='kto' is not one of sigmoid, ipo, hinge, robust, apo_zero, simpo, orpo"),
        ("dpo", {"logp": "median"}, "dpo.logp='median' is not one of sum, mean"),
        ("dpo", {"beta": 0.0}, "dpo.beta=0.0 must be greater than 0"),
        ("dpo", {"margin": -0.1}, "dpo.margin=-0.1 must be at least 0.0"),
        ("dpo", {"sft_weight": -1.0}, "dpo.sft_weight=-1.0 must be at least 0.0"),
        ("dpo", {"label_smoothing": 0.6}, "dpo.label_smoothing=0.6 must lie between 0.0 and 0.5"),
        ("dpo", {"label_smoothing": 0.5}, "dpo.label_smoothing=0.5 says that the pairs carry no information"),
        ("dpo", {"label_smoothing": 0.1, "loss": "ipo"}, "dpo.label_smoothing has no meaning for dpo.loss=ipo"),
        ("dpo", {"loss": "orpo"}, "set dpo.sft_weight=1.0"),
        ("dpo", {"betta": 1.0}, "unknown config key dpo.betta: did you mean beta?"),
        ("sft", {"system_prompt_prob": 1.1}, "sft.system_prompt_prob=1.1 must lie between 0.0 and 1.0"),
        ("sft", {"empty_think_drop_prob": -0.1}, "sft.empty_think_drop_prob=-0.1 must lie between"),
    ],
)
def test_sections_of_stages_are_checked(stage: str, changes: dict[str, Any], words: str):
    with pytest.raises(UserError) as e:
        from_recipe(of_stage(stage, **changes))
    assert words in str(e.value)


def test_a_section_belongs_to_its_stage():
    assert from_recipe(of_stage("dpo", beta=0.3)).dpo.beta == 0.3
    assert from_recipe(of_stage("sft")).dpo is None
    with pytest.raises(UserError, match="section dpo belongs to stage dpo, not to stage sft"):
        from_recipe(of_stage("sft") | {"dpo": {}})
    with pytest.raises(UserError, match="needs a section dpo"):
        from_recipe({key: value for key, value in of_stage("dpo").items() if key != "dpo"})
    with pytest.raises(UserError, match=r"name it by --config\.init_from"):
        from_recipe(of_stage("dpo") | {"init_from": ""})
