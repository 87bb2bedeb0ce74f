"""What a recipe will cost, before it starts; no data is read, no accelerator is opened.

python -m minimind_jax.plan --config configs/pretrain.py [--config.KEY=VALUE ...] --devices 8
                            [--peak-tflops 312 [--mfu 0.4]] [--tokens N] [--json OUT]

Parameters, state and arithmetic are exact. Activations are an estimate (formula: minimind_jax/plan/memory.py): of
language modelling with plain attention, which a fused kernel undercuts. DPO's reference pass is not counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimind_jax.config import Config, from_recipe
from minimind_jax.errors import UserError, user_errors
from minimind_jax.recipe import load_recipe

if TYPE_CHECKING:
    from minimind_jax.plan.plan import Plan


def main(argv: Sequence[str]) -> None:
    """Runs the command. Raises UserError."""
    parser = argparse.ArgumentParser(
        prog="python -m minimind_jax.plan",
        description=__doc__,
        usage="%(prog)s --config FILE[:ARG] [--config.KEY=VALUE ...] [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--devices", type=int, default=1, help="GPUs of all machines together (default: %(default)s)")
    parser.add_argument("--peak-tflops", type=float, help="of one device, dense bf16 (an A100 has 312): gives times")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of it that is reached (default: %(default)s)")
    parser.add_argument("--tokens", type=int, help="tokens of one epoch: gives the steps of a recipe of epochs")
    parser.add_argument("--json", type=Path, help="file to write the plan to, sizes in bytes")
    args, recipe_flags = parser.parse_known_args(argv)
    recipe, user_set = load_recipe([parser.prog, *recipe_flags])
    os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported: a GPU that trains has no memory to spare
    from minimind_jax.plan.plan import make_plan
    from minimind_jax.workdir import write_atomically

    config, note = _config(recipe, user_set)
    peak = args.peak_tflops * 1e12 if args.peak_tflops is not None else None
    plan = make_plan(config, args.devices, args.tokens, peak, args.mfu)
    print("\n".join([*_report(plan, config, args.mfu), *filter(None, [note])]))
    if args.json:
        if not args.json.parent.is_dir():
            raise UserError(f"--json {args.json} cannot be written: name a file in a directory that exists")
        write_atomically(args.json, json.dumps(dataclasses.asdict(plan), indent=2) + "\n")


def _config(recipe: Any, user_set: set[str]) -> tuple[Config, str]:
    """The checked config and a remark. An `init_from` that is not there yet leaves the recipe's own architecture."""
    from minimind_jax.tokenizer import load_tokenizer
    from minimind_jax.training.vocabulary import fit_vocabulary
    from minimind_jax.workdir import model_config, tokenizer_directory

    source = recipe["init_from"]
    if source and not (Path(source) / "config.json").is_file():
        return from_recipe(recipe), f"note: {source} is not there yet: planned with the recipe's own model"
    config = from_recipe(recipe, user_set, model_config(source) if source else None)
    if config.tokenizer_change == "resize":
        tokenizer = load_tokenizer(config.tokenizer or str(tokenizer_directory(source)))
        config, note = fit_vocabulary(config, tokenizer, recipe, user_set)
        return config, f"note: {note}" if note else ""
    return config, ""


def _report(plan: Plan, config: Config, mfu: float) -> list[str]:
    memory = plan.memory
    lines = [
        f"model        {config.model.dim} x {config.model.n_layers}, {plan.params / 1e6:.1f} M parameters, "
        f"{plan.embedding_params / 1e6:.1f} M of them embedding",
        f"mesh         {plan.devices} device(s), data={plan.mesh['data']} fsdp={plan.mesh['fsdp']}; a micro-batch is "
        f"{plan.rows_per_device} rows of {plan.row_length:,} tokens a device, accum_steps {config.accum_steps}",
        "memory       of one device:",
        f"  parameters {_sizes(memory.params)}",
        f"  optimiser  {_sizes(memory.optimizer)}",
        f"  gradients  {_sizes(memory.gradients)}",
        f"  activations, estimated  {_size(memory.activations)} ({plan.compute_dtype}, remat {config.remat}) "
        f"+ {_size(memory.working)} in the backward pass",
        f"  together   {_size(memory.state + memory.step)}",
        f"arithmetic   {plan.flops_per_token / 1e6:,.0f} MFLOP a token (6N + 12LDT), "
        f"{plan.tokens_per_step:,} tokens and {plan.flops_per_step / 1e12:,.1f} TFLOP a step",
    ]
    if plan.steps:
        total = plan.steps * plan.tokens_per_step
        lines.append(f"length       {plan.steps:,} steps, {total / 1e6:,.1f} M tokens")
    else:
        lines.append(f"length       {config.epochs:g} epochs: --tokens N (of one epoch) gives the steps")
    if plan.tokens_per_s and plan.seconds_per_step:
        speed = f"{plan.tokens_per_s:,.0f} tokens/s, {plan.seconds_per_step:.3g} s a step at {mfu:.0%} of the peak"
        whole = f"; {_duration(plan.seconds)} in all" if plan.seconds else ""
        lines.append(f"time         {speed}{whole}, without evaluation and saving")
    return lines


def _sizes(by_dtype: dict[str, int]) -> str:
    """Of each dtype that matters; counters of some bytes do not."""
    shown = [f"{_size(n)} {name}" for name, n in by_dtype.items() if n > 1000]
    return " + ".join(shown) or "0"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**29 else f"{n_bytes / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 7200:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
