"""One training step, ours against PyTorch's with transformers' model, side by side.

    python -m benchmarks.train_step --preset tiny --batch 8 --seq-len 256 [--scan-unroll N] [--repeats N] [--compile]

A step is forward, backward, clipping and AdamW in float32, from the same weights, on the same batch of full rows (one
document each, so that PyTorch needs no mask) and with the same number of threads: one for every core that the process
may use (`taskset` gives fewer). PyTorch runs scaled_dot_product_attention and its default AdamW, eagerly or with
`--compile`. The two take turns in one process, so that both see the same machine; a ratio is taken of each pair.
Needs torch and transformers (requirements-test.txt).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers

from minimind_jax import hf_format
from minimind_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from minimind_jax.errors import UserError, user_errors
from minimind_jax.model import Params, count_params, init_params
from minimind_jax.objectives import language_modelling
from minimind_jax.recipe import MODEL_PRESETS
from minimind_jax.training.optimizer import make_optimizer, make_schedule
from minimind_jax.training.step import compute_dtype, init_state, make_forward, make_train_step

Batch = dict[str, np.ndarray]
Step = Callable[[], float]  # makes one update and returns the loss before it

# PyTorch's OpenMP threads keep spinning for a moment after their work: not into the other side's turn.
_PAUSE_S = 0.05


def our_step(config: Config, params: Params, batch: Batch) -> Step:
    optimizer, schedule = make_optimizer(config.optim), make_schedule(config.optim, config.steps)
    update = make_train_step(make_forward(config, compute_dtype(config)), language_modelling, optimizer, schedule)
    state = init_state(jax.tree.map(jax.numpy.asarray, params), optimizer)
    on_device = {key: jax.numpy.asarray(value)[None] for key, value in batch.items()}
    compiled = jax.jit(update, donate_argnums=0).lower(state, on_device).compile()

    def step() -> float:
        nonlocal state
        state, report = compiled(state, on_device)
        jax.block_until_ready(state)
        return float(report["loss"])

    return step


def torch_step(config: Config, params: Params, batch: Batch, compiled: bool) -> Step:
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as directory:
        hf_format.write_config(Path(directory), config.model, dtype="float32", bos_id=1, eos_id=2, pad_id=0)
        hf_format.write_params(Path(directory), params, config.model, "float32")
        load = transformers.AutoModelForCausalLM.from_pretrained
        model = load(directory, dtype=torch.float32, attn_implementation="sdpa").train()
    named, optim = list(model.named_parameters()), config.optim
    groups = [
        {"params": [p for n, p in named if "norm" not in n], "weight_decay": optim.weight_decay},
        {"params": [p for n, p in named if "norm" in n], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.b1, optim.b2), eps=1e-8)
    tokens, targets = (torch.from_numpy(batch[key]).long() for key in ("tokens", "targets"))

    def loss_of(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=tokens, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    forward = torch.compile(loss_of) if compiled else loss_of

    def step() -> float:
        loss = forward(tokens, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.grad_clip)
        optimizer.step()
        return loss.item()

    return step


def make_batch(vocab_size: int, batch_size: int, seq_len: int) -> Batch:
    """Rows of one document each; targets are the tokens shifted by one."""
    rows = np.random.default_rng(0).integers(3, vocab_size, (batch_size, seq_len + 1), dtype=np.int32)
    return {
        "tokens": rows[:, :-1].copy(),
        "targets": rows[:, 1:].copy(),
        "segment_ids": np.ones((batch_size, seq_len), np.int32),
        "positions": np.tile(np.arange(seq_len, dtype=np.int32), (batch_size, 1)),
        "target_mask": np.ones((batch_size, seq_len), bool),
    }


def measure(config: Config, repeats: int, compiled: bool) -> dict[str, Any]:
    """Seconds of both, by turns after three steps that do not count.

    Raises UserError if the two disagree on the first losses: then they do not compute the same.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    params = jax.tree.map(np.asarray, init_params(config.model, 0))
    batch = make_batch(config.model.vocab_size, config.batch_size, config.data.max_seq_len)
    sides = {
        "ours": our_step(config, params, batch),
        "torch": torch_step(config, params, batch, compiled),
    }
    for number in range(3):
        losses = {name: step() for name, step in sides.items()}
        if abs(losses["ours"] - losses["torch"]) > 1e-3:
            raise UserError(f"the losses of step {number + 1} differ: {losses}")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats):
        order = list(sides) if repeat % 2 == 0 else list(reversed(sides))
        for name in order:
            time.sleep(_PAUSE_S)
            began = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - began)
    return summarise(config, seconds, compiled)


def summarise(config: Config, seconds: dict[str, list[float]], compiled: bool) -> dict[str, Any]:
    ours, theirs = np.array(seconds["ours"]), np.array(seconds["torch"])
    low, middle, high = np.percentile(ours / theirs, [25, 50, 75])
    tokens = config.batch_size * config.data.max_seq_len
    return {
        "params": count_params(config.model),
        "batch": config.batch_size,
        "seq_len": config.data.max_seq_len,
        "ours_s": float(np.median(ours)),
        "torch_s": float(np.median(theirs)),
        "ours_tokens_per_s": float(tokens / np.median(ours)),
        "torch_tokens_per_s": float(tokens / np.median(theirs)),
        "ratio": float(middle),
        "ratio_quartiles": [float(low), float(high)],
        "repeats": len(ours),
        "torch_compile": compiled,
        "threads": torch.get_num_threads(),
        "cpu": cpu_name(),
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", choices=["tiny", "minimind2_small"], help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=8, help="rows a step (default: %(default)s)")
    parser.add_argument("--scan-unroll", type=int, default=1, help="our scan_unroll (default: %(default)s)")
    parser.add_argument("--seq-len", type=int, default=256, help="tokens a row (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=10, help="timed steps of each (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="torch.compile PyTorch's forward and backward")
    parser.add_argument("--json", type=Path, help="file to write the result to")
    args = parser.parse_args()
    with user_errors():
        if min(args.batch, args.seq_len, args.repeats) < 1:
            raise UserError("--batch, --seq-len and --repeats must be at least 1")
        # A mesh of one device: XLA's threads are then the only parallelism, as in PyTorch.
        jax.config.update("jax_platforms", "cpu")
        config = Config(
            stage="pretrain",
            workdir="unused",
            model=ModelConfig(**MODEL_PRESETS[args.preset]),
            data=DataConfig(path="unused", max_seq_len=args.seq_len),
            optim=OptimConfig(schedule="constant"),
            steps=1,
            batch_size=args.batch,
            scan_unroll=args.scan_unroll,
        )
        result = measure(config, args.repeats, args.compile)
        low, high = result["ratio_quartiles"]
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        print(f"{args.preset}: {result['params'] / 1e6:.1f} M parameters, {args.batch} rows of {args.seq_len} tokens")
        print(f"{result['cpu']}, {result['threads']} threads; {versions}")
        for name in ("ours", "torch"):
            print(f"{name:6} {result[f'{name}_s'] * 1e3:9.1f} ms/step  {result[f'{name}_tokens_per_s']:9,.0f} tokens/s")
        spread = f"quartiles {low:.3f} to {high:.3f}, {args.repeats} pairs"
        print(f"ratio  {result['ratio']:.3f} ({spread}; below 1: ours is faster)")
        if args.json:
            args.json.write_text(json.dumps({"preset": args.preset, **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
