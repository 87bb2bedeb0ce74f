"""Each message of the config that names a way on, and the config after that very way."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from test_config import BASE, VALID, with_values

from minimind_jax.config import from_recipe
from minimind_jax.errors import UserError

DPO = {"stage": "dpo", "init_from": "base", "dpo__beta": 0.1}
ADVICE: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"model__dim": 65}, "change one of them or set model.head_dim", {"model__head_dim": 16}),
    ({"model__dim": 65}, "change one of them or set model.head_dim", {"model__dim": 64}),
    ({"model__head_dim": 15}, "take an even one", {"model__head_dim": 16}),
    ({"model__n_kv_heads": 3}, "not a multiple of model.n_kv_heads=3", {"model__n_kv_heads": 2}),
    ({"steps": 0}, "set one of them", {"epochs": 1.0}),
    ({"steps": 0}, "set one of them", {"steps": 5}),
    ({"workdir": ""}, "name the directory", {"workdir": "out/x"}),
    ({"data__path": ""}, "--config.data.path=a.jsonl", {"data__path": "a.jsonl"}),
    ({"data__max_seq_len": 2048}, "shorten the rows or raise the limit", {"data__max_seq_len": 1024}),
    ({"data__max_seq_len": 2048}, "shorten the rows or raise the limit", {"model__max_seq_len": 2048}),
    ({"data__val_fraction": 1.0}, "take less than 1", {"data__val_fraction": 0.9}),
    ({"data__val_path": "v.jsonl", "data__val_fraction": 0.1}, "a file or a fraction", {"data__val_fraction": 0.0}),
    ({"optim__schedule": "wsd", "optim__decay_ratio": 0.0}, "optim.schedule=constant", {"optim__schedule": "constant"}),
    ({"optim__schedule": "wsd", "optim__decay_ratio": 0.0}, "or a share", {"optim__decay_ratio": 0.1}),
    ({"optim__b2": 1.0}, "take less than 1", {"optim__b2": 0.999}),
    ({"precision__compute": "float16"}, "bfloat16 has float32's range", {"precision__compute": "bfloat16"}),
    ({"precision__params": "float16"}, "bfloat16 has float32's range", {"precision__params": "bfloat16"}),
    ({"mesh__data": -1, "mesh__fsdp": -1}, "only one of them", {"mesh__fsdp": 1}),
    ({"mesh__data": 0}, "must be -1", {"mesh__data": -1}),
    ({"batch_size": 8, "accum_steps": 3}, "not divisible by accum_steps=3", {"accum_steps": 4}),
    ({"tokenizer_change": "resize"}, "leave it unset", {"tokenizer_change": "refuse"}),
    ({"tokenizer_change": "yes"}, "not one of refuse, resize", {"tokenizer_change": "refuse"}),
    (DPO | {"init_from": ""}, "--config.init_from=WORKDIR_OR_HF_DIR", {"init_from": "base"}),
    (DPO | {"dpo__loss": "orpo"}, "set dpo.sft_weight=1.0", {"dpo__sft_weight": 1.0}),
    (DPO | {"dpo__label_smoothing": 0.5}, "take less", {"dpo__label_smoothing": 0.4}),
    (DPO | {"dpo__loss": "ipo", "dpo__label_smoothing": 0.1}, "set it to 0", {"dpo__label_smoothing": 0.0}),
]


@pytest.mark.parametrize(("bad", "advice", "followed"), ADVICE, ids=[f"{b} {f}" for b, _, f in ADVICE])
def test_what_a_message_says_helps(bad, advice, followed):
    with pytest.raises(UserError) as error:
        from_recipe(with_values(**bad))
    assert advice in str(error.value)
    from_recipe(with_values(**bad | followed))


@pytest.mark.parametrize("key", ["dim", "n_layers", "qk_norm", "vocab_size", "norm_eps"])
def test_what_contradicts_init_from_may_be_left_unset(key):
    value = not BASE.qk_norm if key == "qk_norm" else 2 * getattr(BASE, key)
    recipe = with_values(init_from="base", **{f"model__{key}": value})
    with pytest.raises(UserError, match="leave it unset") as error:
        from_recipe(recipe, (f"model.{key}",), BASE)
    assert from_recipe(VALID | {"init_from": "base"}, (), BASE).model == BASE
    if key == "vocab_size":
        assert "or set --config.tokenizer_change=resize" in str(error.value)
        resized = from_recipe(recipe | {"tokenizer_change": "resize"}, (f"model.{key}",), BASE)
        assert resized.model == dataclasses.replace(BASE, vocab_size=value)
