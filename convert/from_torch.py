"""Imports MiniMind's weights, a PyTorch state dict (.pth), as a workdir with parameters at step 0.

    python -m convert.from_torch --weights FILE.pth --out WORKDIR --tokenizer minimind/model

Sizes come from the tensors' shapes. What shapes cannot tell has MiniMind's values and flags to change
them: with q_norm weights it is a MiniMind-3 (Qwen3's architecture), without a MiniMind2 (Llama's).
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convert.output import new_directory
from convert.pth import StateDict
from minimind_jax import hf_format
from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError, user_errors
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.workdir import Workdir, save_imported

_N_HEADS = 8  # of every MiniMind
_NORM_EPS = {False: 1e-5, True: 1e-6}  # MiniMind2's and MiniMind-3's, by qk_norm
LAYER = re.compile(r"model\.layers\.(\d+)\.")
_UNSUPPORTED = (
    (re.compile(r"\.mlp\.(gate\.weight|experts\.|shared_experts?\.)"), "belongs to a mixture of experts"),
    (re.compile(r"\.lora[._]|\.lora_[AB]\."), "is a LoRA adapter, which must be merged into its model first"),
)


@dataclass(frozen=True)
class Given:
    """What shapes do not tell; the defaults are MiniMind's."""

    n_heads: int | None = None  # query heads; None = as q_norm or n_kv_heads imply, else 8
    n_kv_heads: int | None = None  # key/value heads; None = as many as k_proj has
    rope_theta: float = 1e6
    max_seq_len: int = 32768
    norm_eps: float | None = None  # of RMSNorm; None = 1e-6 with q_norm, 1e-5 without

    def __post_init__(self) -> None:
        for name, count in (("--n-heads", self.n_heads), ("--n-kv-heads", self.n_kv_heads)):
            if count is not None and count < 1:
                raise UserError(f"{name} {count} must be at least 1")

    @classmethod
    def of(cls, config: ModelConfig) -> Given:
        """What brings `config` back from its shapes, all but its rope_scaling."""
        norm_eps = None if config.norm_eps == _NORM_EPS[config.qk_norm] else config.norm_eps
        n_heads = None if config.qk_norm or config.n_heads == _N_HEADS else config.n_heads
        return cls(n_heads, None, config.rope_theta, config.max_seq_len, norm_eps)

    def flags(self) -> str:
        """As options of this command; defaults are left out."""
        fields = (
            (field.name.replace("_", "-"), getattr(self, field.name), field.default)
            for field in dataclasses.fields(self)
        )
        return " ".join(f"--{name} {value}" for name, value, default in fields if value != default)


def import_state_dict(weights: Path, out: Path, tokenizer: str = "", given: Given | None = None) -> ModelConfig:
    """Writes the workdir `out`.

    Args:
      tokenizer: directory; "" = the shipped one.

    Raises:
      UserError: `out` exists, the file is none that we can read, or tokenizer or `given` do not fit it.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists already: name a workdir that is not there yet")
    words = load_tokenizer(tokenizer)
    state = StateDict(weights)
    config = infer_config(weights, state.shapes, given or Given(), is_tied(state))
    if words.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer in {words.path} has {words.vocab_size} entries, {hf_format.EMBED} of {weights} "
            f"{config.vocab_size} rows: name the model's own by --tokenizer"
        )
    params = hf_format.from_hf_tensors(state.__getitem__, config)
    with new_directory(out) as temporary:
        save_imported(Workdir(temporary), config, params, words, str(weights))
    return config


def is_tied(state: StateDict) -> bool:
    """Whether the output matrix is missing or the embedding itself."""
    head, embed = hf_format.LM_HEAD, hf_format.EMBED
    if head not in state.shapes or embed not in state.shapes:
        return True
    return state.shapes[head] == state.shapes[embed] and np.array_equal(state[head], state[embed])


def check_dense(weights: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises UserError for tensors of a mixture of experts or a LoRA adapter."""
    for name in shapes:
        for pattern, what in _UNSUPPORTED:
            if pattern.search(name):
                raise UserError(f"{weights}: {name} {what}: only dense models can be read")


def infer_config(
    weights: Path, shapes: Mapping[str, tuple[int, ...]], given: Given, tie_embeddings: bool
) -> ModelConfig:
    """The architecture that tensors of these shapes belong to.

    Args:
      weights: their file, for messages.

    Raises:
      UserError: a tensor is missing, unexpected, of another kind or shape, or a head count does not fit them.
    """
    check_dense(weights, shapes)

    def shape(name: str, n_dims: int = 2) -> tuple[int, ...]:
        if name not in shapes:
            others = "" if hf_format.EMBED in shapes else f" (the first of its tensors is {next(iter(shapes))})"
            raise UserError(f"{weights} lacks {name}: it is no state dict of MiniMind, Llama or Qwen3{others}")
        if len(shapes[name]) != n_dims or 0 in shapes[name]:
            raise UserError(f"{weights}: {name} has shape {shapes[name]}, which is not {n_dims}-dimensional")
        return shapes[name]

    layer = "model.layers.0."
    vocab_size, dim = shape(hf_format.EMBED)
    q_size, kv_size = (shape(f"{layer}self_attn.{name}_proj.weight")[0] for name in "qk")
    qk_norm = f"{layer}self_attn.q_norm.weight" in shapes
    if qk_norm:
        (head_dim,) = shape(f"{layer}self_attn.q_norm.weight", 1)
        source = f"q_norm weights of length {head_dim}"
    elif given.n_heads is None and given.n_kv_heads is not None:
        head_dim, source = kv_size // given.n_kv_heads, f"--n-kv-heads {given.n_kv_heads}"
    else:
        heads = given.n_heads or _N_HEADS
        head_dim, source = q_size // heads, f"--n-heads {heads}"
    for name, size, count in (("q", q_size, given.n_heads), ("k", kv_size, given.n_kv_heads)):
        if head_dim < 1 or size % head_dim or count not in (None, size // head_dim):
            raise UserError(
                f"{weights}: {layer}self_attn.{name}_proj.weight has {size} rows, which do not make "
                f"{count or 'whole'} heads with {source}: give the model's own --n-heads and --n-kv-heads"
            )
    try:
        config = ModelConfig(
            dim=dim,
            n_layers=1 + max(int(found[1]) for name in shapes if (found := LAYER.match(name))),
            n_heads=q_size // head_dim,
            n_kv_heads=kv_size // head_dim,
            head_dim=head_dim,
            ffn_dim=shape(f"{layer}mlp.gate_proj.weight")[0],
            vocab_size=vocab_size,
            max_seq_len=given.max_seq_len,
            rope_theta=given.rope_theta,
            norm_eps=_NORM_EPS[qk_norm] if given.norm_eps is None else given.norm_eps,
            qk_norm=qk_norm,
            tie_embeddings=tie_embeddings,
        )
    except UserError as e:
        raise UserError(f"{weights}: {e}") from None
    hf_format.check_tensors(weights, shapes, config, "the sizes of its embedding and layer 0")
    return config


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m convert.from_torch", description=__doc__.split("\n")[0])
    parser.add_argument("--weights", required=True, type=Path, help="state dict, such as full_sft_512.pth")
    parser.add_argument("--out", required=True, type=Path, help="workdir to create")
    parser.add_argument("--tokenizer", default="", help="the model's tokenizer directory (default: the shipped one)")
    parser.add_argument("--n-heads", type=int, help=f"query heads (default {_N_HEADS}; q_norm weights tell it)")
    parser.add_argument("--n-kv-heads", type=int, help="key/value heads (default: as many as k_proj has)")
    parser.add_argument("--rope-theta", type=float, default=Given.rope_theta, help="RoPE's base (default %(default)g)")
    parser.add_argument("--max-seq-len", type=int, default=Given.max_seq_len, help="positions (default %(default)d)")
    parser.add_argument("--norm-eps", type=float, help="RMSNorm's (default 1e-6 with q_norm weights, 1e-5 without)")
    args = parser.parse_args(argv)
    with user_errors():
        given = Given(args.n_heads, args.n_kv_heads, args.rope_theta, args.max_seq_len, args.norm_eps)
        config = import_state_dict(args.weights, args.out, args.tokenizer, given)
        if not args.tokenizer:
            print(
                "warning: took the shipped tokenizer. MiniMind's models have another one of the same size: "
                "for them name MiniMind's directory model by --tokenizer",
                file=sys.stderr,
            )
        print(
            f"{args.out}: parameters of {args.weights} at step 0, no optimiser; {config.n_layers} layers of "
            f"{config.dim}, {config.n_heads} heads, {config.n_kv_heads} for keys and values, "
            f"rope_theta {config.rope_theta:g}; train on with init_from={args.out}"
        )


if __name__ == "__main__":
    main()
