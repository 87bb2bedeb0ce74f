"""Our training against PyTorch's: transformers' model and AdamW from the same weights on the same batches."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from minimind_jax import hf_format
from minimind_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from minimind_jax.data import RowSource, open_pretrain, step_row_ids
from minimind_jax.model import init_params
from minimind_jax.objectives import language_modelling
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.training.optimizer import make_optimizer, make_schedule
from minimind_jax.training.step import init_state, make_forward, make_train_step

Batch = dict[str, np.ndarray]

SHAPES = {
    "llama": ModelConfig(
        dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=211, max_seq_len=64, rope_theta=1e4
    ),
    "qwen3": ModelConfig(
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=1,
        head_dim=12,
        ffn_dim=48,
        vocab_size=211,
        max_seq_len=64,
        qk_norm=True,
        tie_embeddings=False,
    ),
}


def make_config(model: ModelConfig, corpus: Path, steps: int, batch_size: int, seq_len: int, lr: float) -> Config:
    """Warm-up, cosine, decay and clipping all take effect within `steps`."""
    return Config(
        stage="pretrain",
        workdir="unused",
        model=model,
        data=DataConfig(path=str(corpus), cache_dir=str(corpus.parent / "tokens"), max_seq_len=seq_len),
        optim=OptimConfig(lr=lr, warmup_steps=steps // 5, weight_decay=0.1, grad_clip=1.25),
        steps=steps,
        batch_size=batch_size,
        accum_steps=2,
    )


def load_batches(config: Config) -> Iterator[Batch]:
    rows: RowSource = open_pretrain(config.data, load_tokenizer(""), config.seed)[0]
    for step in range(config.steps):
        batch = rows.batch(step_row_ids(step, config.batch_size))
        # A small vocabulary keeps PyTorch's part quick; which ids stand where does not matter here.
        yield batch | {key: batch[key] % config.model.vocab_size for key in ("tokens", "targets")}


def our_run(config: Config, params: dict, dtype: jnp.dtype) -> dict[str, np.ndarray]:
    """loss, grad_norm and lr of each step, by the real train step."""
    optimizer, schedule = make_optimizer(config.optim), make_schedule(config.optim, config.steps)
    step = jax.jit(make_train_step(make_forward(config, dtype), language_modelling, optimizer, schedule))
    state = init_state(jax.tree.map(lambda p: jnp.asarray(p, dtype), params), optimizer)
    reports = []
    for batch in load_batches(config):
        micro_batches = {k: v.reshape(config.accum_steps, -1, v.shape[-1]) for k, v in batch.items()}
        state, report = step(state, micro_batches)
        assert report["loss"].dtype == dtype and report["finite"]
        reports.append(report)
    return {key: np.array([float(report[key]) for report in reports]) for key in ("loss", "grad_norm", "lr")}


def torch_run(config: Config, model: torch.nn.Module, lr: np.ndarray, exact_clip: bool) -> dict[str, np.ndarray]:
    """PyTorch's AdamW with decay on matrices only; whole batches, every segment a sequence of its own.

    `lr` is checked, and then taken to the last bit: our step computes it in float32.
    """
    np.testing.assert_allclose(lr, [learning_rate(config, step) for step in range(config.steps)], rtol=1e-6)
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if "norm" not in n], "weight_decay": config.optim.weight_decay},
        {"params": [p for n, p in named if "norm" in n], "weight_decay": 0.0},
    ]
    assert len(groups[1]["params"]) == config.model.n_layers * (4 if config.model.qk_norm else 2) + 1
    optimizer = torch.optim.AdamW(groups, betas=(config.optim.b1, config.optim.b2), eps=1e-8)
    losses, norms = [], []
    for step, batch in enumerate(load_batches(config)):
        loss = segment_losses(model, batch).sum() / int(batch["target_mask"].sum())
        optimizer.zero_grad()
        loss.backward()
        parameters, limit = [p for _, p in named], config.optim.grad_clip
        if exact_clip:  # clip_grad_norm_ divides by (norm + 1e-6), which 1e-8 would show
            norm = torch.sqrt(sum(p.grad.square().sum() for p in parameters))
            for p in parameters:
                p.grad *= min(1.0, limit / norm.item())
        else:
            norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        for group in optimizer.param_groups:
            group["lr"] = float(lr[step])
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm.item())
    return {"loss": np.array(losses), "grad_norm": np.array(norms)}


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up, then a cosine to `min_lr_ratio`."""
    o = config.optim
    if step < o.warmup_steps:
        return o.lr * (step + 1) / o.warmup_steps
    progress = (step - o.warmup_steps) / (config.steps - o.warmup_steps)
    return o.lr * (o.min_lr_ratio + (1 - o.min_lr_ratio) * (1 + np.cos(np.pi * progress)) / 2)


def segment_losses(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The negative log-likelihoods of all targets; each segment of each row goes through the model alone."""
    segments = [
        np.flatnonzero(ids == segment) + row * len(ids)
        for row, ids in enumerate(batch["segment_ids"])
        for segment in range(1, ids.max() + 1)
    ]
    assert len(segments) > 2 * len(batch["tokens"]), "most rows should hold several segments"
    tokens, targets, mask = (torch.from_numpy(batch[k].reshape(-1)) for k in ("tokens", "targets", "target_mask"))
    length = max(map(len, segments))
    # Padded behind, where a causal model does not look.
    index = torch.tensor([list(s) + [s[-1]] * (length - len(s)) for s in segments])
    real = torch.tensor([[True] * len(s) + [False] * (length - len(s)) for s in segments])
    logits = model(input_ids=tokens[index].long()).logits
    scored = real & mask[index]
    return torch.nn.functional.cross_entropy(logits[scored], targets[index][scored].long(), reduction="none")


def reference_model(config: ModelConfig, params: dict, directory: Path) -> torch.nn.Module:
    """Transformers' own class, with `params`."""
    directory.mkdir()
    hf_format.write_config(directory, config, dtype="float32", bos_id=1, eos_id=2, pad_id=0)
    hf_format.write_params(directory, params, config, "float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert type(model).__name__ == ("Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM")
    return model.train()


def widen(model: torch.nn.Module, config: ModelConfig) -> torch.nn.Module:
    """float64 throughout: transformers computes RMSNorm and RoPE in float32 whatever the weights are."""

    def rms_norm(self, x):
        return self.weight * (x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.variance_epsilon))

    def rope(self, x, position_ids):
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        angles = position_ids[..., None].double() / config.rope_theta**exponents
        return torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)

    replacements = {"RMSNorm": rms_norm, "RotaryEmbedding": rope}
    for module in model.modules():
        for suffix, forward in replacements.items():
            if type(module).__name__.endswith(suffix):
                module.forward = types.MethodType(forward, module)
    return model.double()


@pytest.fixture(autouse=True)
def one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", [pytest.param("llama", marks=pytest.mark.slow), "qwen3"])
def test_50_losses_in_float64(name, corpus, tmp_path):
    model = SHAPES[name]
    config = make_config(model, corpus, steps=50, batch_size=4, seq_len=64, lr=1e-2)
    params = jax.tree.map(np.asarray, init_params(model, 0))
    with jax.enable_x64(True):
        ours = our_run(config, params, jnp.dtype(jnp.float64))
    reference = widen(reference_model(model, params, tmp_path / "hf"), model)
    theirs = torch_run(config, reference, ours["lr"], exact_clip=True)
    clipped = ours["grad_norm"] > config.optim.grad_clip
    assert clipped.any() and not clipped.all()
    assert ours["loss"][-1] < ours["loss"][0] - 1
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(ours["grad_norm"], theirs["grad_norm"], rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("qk_norm", [False, True])
def test_10_losses_in_float32(qk_norm, corpus, tmp_path):
    model = dataclasses.replace(ModelConfig(dim=256, n_layers=4, n_heads=4, n_kv_heads=2), qk_norm=qk_norm)
    config = make_config(model, corpus, steps=10, batch_size=8, seq_len=128, lr=5e-4)
    params = jax.tree.map(np.asarray, init_params(model, 0))
    ours = our_run(config, params, jnp.dtype(jnp.float32))
    reference = reference_model(model, params, tmp_path / "hf")
    theirs = torch_run(config, reference, ours["lr"], exact_clip=False)
    assert ours["loss"][-1] < ours["loss"][0] - 0.5
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=0, atol=1e-4)
