"""Attention's backends side by side: forward and backward of one layer's attention, and its memory.

    python -m benchmarks.attention [--batch 8 --seq-len 1024 --heads 8 --kv-heads 2 --head-dim 128 --segments 4]

Runs what this platform has: `xla` (the reference, above the diagonal nothing), `square` (the same in one product over
the full T x T, what a plain implementation does) and, on a CUDA GPU, `triton` and with --segments 1 `cudnn`; why one
is missing is said. All see the same rows, cut into segments of equal length, and take turns, forwards and backwards;
the ratio to xla is taken of each turn. Memory is what the compiled program needs beside its arguments.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError, user_errors
from minimind_jax.model.attention import AttentionFn, masked_attention, pick_attention, xla_attention


def square_attention(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
    causal = jnp.tri(q.shape[1], dtype=bool)
    same_segment = segment_ids[:, :, None] == segment_ids[:, None]
    return masked_attention(q, k, v, (causal & same_segment)[:, None, None])


def backends(args: argparse.Namespace, dtype: jnp.dtype) -> dict[str, AttentionFn]:
    found: dict[str, AttentionFn] = {"xla": xla_attention, "square": square_attention}
    model = ModelConfig(n_heads=args.heads, n_kv_heads=args.kv_heads, head_dim=args.head_dim)
    for name in ("triton", "cudnn"):
        try:
            found[name] = pick_attention(name, model, dtype, args.segments > 1).attend
        except UserError as e:
            print(f"no {name}: {e}")
    return found


def compile_gradient(attend: AttentionFn, arrays: list[jax.Array]) -> Any:
    """All outputs of a layer's backward pass: the output itself and the gradients of q, k and v."""

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = attend(q, k, v, segment_ids)
        return jnp.sum(out.astype(jnp.float32)), out

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True)).lower(*arrays).compile()


def measure(args: argparse.Namespace, dtype: jnp.dtype) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(0)
    shape = args.batch, args.seq_len
    heads = (args.heads, args.kv_heads, args.kv_heads)
    arrays = [jnp.asarray(rng.standard_normal((*shape, n, args.head_dim)), dtype) for n in heads]
    segment_of = np.arange(args.seq_len) * args.segments // args.seq_len + 1
    arrays.append(jnp.asarray(np.broadcast_to(segment_of, shape), jnp.int32))
    programs = {name: compile_gradient(attend, arrays) for name, attend in backends(args, dtype).items()}
    for program in programs.values():
        jax.block_until_ready(program(*arrays))
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for repeat in range(args.repeats):
        for name in list(programs) if repeat % 2 == 0 else list(reversed(programs)):
            began = time.perf_counter()
            jax.block_until_ready(programs[name](*arrays))
            seconds[name].append(time.perf_counter() - began)
    reference = np.array(seconds["xla"])
    result = {}
    for name, program in programs.items():
        memory = program.memory_analysis()
        low, middle, high = np.percentile(np.array(seconds[name]) / reference, [25, 50, 75])
        result[name] = {
            "ms": float(np.median(seconds[name])) * 1e3,
            "mib": (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**20,
            "ratio": float(middle),
            "ratio_low": float(low),
            "ratio_high": float(high),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="rows (default: %(default)s)")
    parser.add_argument("--seq-len", type=int, default=1024, help="tokens a row (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=8, help="query heads (default: %(default)s)")
    parser.add_argument("--kv-heads", type=int, default=2, help="key/value heads (default: %(default)s)")
    parser.add_argument("--head-dim", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--segments", type=int, default=4, help="documents a row (default: %(default)s)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32 on the CPU, else bfloat16")
    parser.add_argument("--repeats", type=int, default=20, help="timed runs of each (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the result to")
    args = parser.parse_args()
    with user_errors():
        if min(args.batch, args.seq_len, args.heads, args.kv_heads, args.head_dim, args.segments, args.repeats) < 1:
            raise UserError("all sizes and --repeats must be at least 1")
        if args.segments > args.seq_len:
            raise UserError(f"--segments {args.segments} do not fit into --seq-len {args.seq_len} tokens")
        dtype = jnp.dtype(args.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16"))
        result = measure(args, dtype)
        print(
            f"{jax.devices()[0].device_kind}, jax {jax.__version__}: {args.batch} rows of {args.seq_len} tokens in "
            f"{args.segments} segments, {args.heads} heads over {args.kv_heads} of {args.head_dim}, {dtype.name}"
        )
        for name, r in result.items():
            print(
                f"{name:7}{r['ms']:10.2f} ms {r['mib']:9,.0f} MiB   {r['ratio']:.3f} of xla "
                f"(quartiles {r['ratio_low']:.3f} to {r['ratio_high']:.3f})"
            )
        if args.json:
            shown = {key: value for key, value in vars(args).items() if key not in ("json", "dtype")}
            args.json.write_text(json.dumps({**shown, "dtype": dtype.name, "backends": result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
