"""Packed rows, from the jsonl file to the gradient: as if each conversation or pair stood alone."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_helpers as th

from minimind_jax.config import Config, DataConfig, DpoConfig, ModelConfig, OptimConfig, SftConfig
from minimind_jax.data import PairRows, SftRows, open_dpo, open_sft
from minimind_jax.model import init_params
from minimind_jax.objectives import Objective, language_modelling, preference_optimization
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.training.step import make_forward

MODEL = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=6400)


def alone(rows: SftRows | PairRows) -> dict[str, np.ndarray]:
    """A batch with one row for each item of the plan."""
    batch = rows.empty(rows.n_docs)
    for i in range(rows.n_docs):
        at = 0
        for number, (tokens, is_target) in enumerate(rows.segments(i, 0), 1):
            end = at + len(tokens)
            batch["tokens"][i, at:end], batch["segment_ids"][i, at:end] = tokens, number
            batch["positions"][i, at:end] = np.arange(len(tokens))
            batch["targets"][i, at : end - 1] = tokens[1:] * is_target[1:]
            batch["target_mask"][i, at : end - 1] = is_target[1:]
            at = end
        if isinstance(rows, PairRows):
            batch["pair_mask"][i, 0] = True
    return batch


def value_and_grad(objective: Objective, config: Config, batch: dict[str, np.ndarray]) -> tuple[float, dict]:
    forward = make_forward(config, jnp.dtype(jnp.float32))
    rows = {name: jnp.asarray(values) for name, values in batch.items()}
    denominators = objective.denominators({name: values[None] for name, values in rows.items()})
    # Zeros in the projections back into the residual stream would make most gradients 0.
    params = jax.tree.map(lambda p: p + 0.05 * jax.random.normal(jax.random.key(1), p.shape), init_params(MODEL, 0))
    loss = jax.jit(jax.value_and_grad(lambda p: objective.loss(forward, p, rows, denominators)[0]))
    value, grads = loss(params)
    return float(value), jax.tree.map(np.asarray, grads)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_packed_batch_has_the_loss_and_gradients_of_its_parts(tmp_path: Path, stage: str) -> None:
    rows: SftRows | PairRows
    if stage == "sft":
        path = th.write_chats(tmp_path / "a.jsonl", 30)
        data = DataConfig(path=str(path), cache_dir=str(tmp_path / "cache"), max_seq_len=128)
        rows, _ = open_sft(data, SftConfig(0.0, 0.5), load_tokenizer(), 0)
        objective = language_modelling
    else:
        path = th.write_pairs(tmp_path / "a.jsonl", 30)
        data = DataConfig(path=str(path), cache_dir=str(tmp_path / "cache"), max_seq_len=96)
        rows, _ = open_dpo(data, load_tokenizer(), 0)
        objective = preference_optimization(DpoConfig(sft_weight=0.3))
    config = Config(stage="pretrain", workdir="out", model=MODEL, data=data, optim=OptimConfig(), steps=1)
    assert rows.rows_per_epoch < rows.n_docs / 2
    packed = rows.batch(np.arange(rows.rows_per_epoch))
    (value, grads), (value_alone, grads_alone) = (
        value_and_grad(objective, config, batch) for batch in (packed, alone(rows))
    )
    assert value == pytest.approx(value_alone, rel=1e-5)
    for (path_, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(grads_alone), strict=True
    ):
        assert np.abs(ours).max() > 0, path_
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5 * np.abs(theirs).max(), err_msg=str(path_))
