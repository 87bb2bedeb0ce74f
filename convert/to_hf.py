"""Exports a model as a Hugging Face directory of a standard class: Qwen3 with qk_norm, Llama without.

    python -m convert.to_hf --model WORKDIR --out DIR [--dtype bfloat16] [--step N] [--yarn-factor F] [--force]

config.json, generation_config.json, model.safetensors (or shards), tokenizer, chat template and a model
card; transformers, vLLM and SGLang load the result as it is. Every export is read back and compared
bit by bit before DIR appears, and where transformers and torch are installed, by its logits there too.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from convert import transformers_check
from convert.hf_tokenizer import meaning, write_tokenizer
from convert.model_card import write_model_card
from convert.output import check_replaceable, new_directory
from minimind_jax import hf_format
from minimind_jax.errors import UserError, user_errors
from minimind_jax.long_context import add_yarn_options, apply_yarn_options
from minimind_jax.tokenizer import Tokenizer, load_tokenizer
from minimind_jax.workdir import LoadedModel, load_model

_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([KMGT]?)B", re.IGNORECASE)


def export(
    model: LoadedModel,
    out: Path,
    dtype: str = "float32",
    force: bool = False,
    max_shard_bytes: int = hf_format.MAX_SHARD_BYTES,
) -> str:
    """Writes `model` to the directory `out` and verifies it.

    Args:
      dtype: of the exported weights: float32 | bfloat16 | float16.
      force: replace an exported model that is at `out`.
      max_shard_bytes: of one weight file.

    Returns:
      What transformers found, or why it was not asked.

    Raises:
      UserError: `out` is taken, a weight does not fit `dtype`, or what was written reads back differently.
    """
    check_replaceable(out, force)
    if out.resolve() in model.path.resolve().parents:
        raise UserError(f"{out} contains the model {model.path}: name another directory")
    with new_directory(out) as temporary:
        write_tokenizer(temporary, model.tokenizer)
        hf_format.write_config(temporary, model.config, dtype=dtype, **_special_ids(model.tokenizer))
        hf_format.write_params(temporary, model.params, model.config, dtype, max_shard_bytes)
        write_model_card(temporary, model, out.resolve().name, architecture(model), dtype)
        return verify(model, temporary, dtype)


def architecture(model: LoadedModel) -> str:
    """transformers' class for the model."""
    return "Qwen3ForCausalLM" if model.config.qk_norm else "LlamaForCausalLM"


def verify(model: LoadedModel, directory: Path, dtype: str) -> str:
    """Reads an export back and compares it with the live model, cast to `dtype`, bit by bit; then asks transformers.

    Returns:
      What transformers found, or why it was not asked.

    Raises:
      UserError: something differs.
    """
    ids = _special_ids(model.tokenizer)
    read, live = (hf_format.hf_config(c, dtype=dtype, **ids) for c in (hf_format.read_config(directory), model.config))
    if read != live:
        raise UserError("the exported config.json reads back as another architecture: nothing was kept")
    if meaning(load_tokenizer(str(directory))) != meaning(model.tokenizer):
        raise UserError("the exported tokenizer reads back differently: nothing was kept")
    written = hf_format.read_params(directory, model.config)
    expected = jax.tree.map(lambda leaf: leaf.astype(np.float32), hf_format.cast_params(model.params, dtype))
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(written), strict=True
    ):
        if not np.array_equal(ours.view(np.uint32), theirs.view(np.uint32)):
            name = ".".join(key.key for key in path)
            raise UserError(f"the exported parameter {name} reads back differently: nothing was kept")
    return transformers_check.check(directory, model.config, expected, model.tokenizer)


def shard_size(text: str) -> int:
    """Bytes of "5GB", "300MB": decimal units, as transformers has them."""
    found = _SIZE.fullmatch(text.strip())
    n_bytes = int(float(found[1]) * 1000 ** " KMGT".index(found[2].upper() or " ")) if found else 0
    if not n_bytes:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 5GB or 300MB")
    return n_bytes


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    return {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m convert.to_hf", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="workdir (or Hugging Face directory, to change its dtype)")
    parser.add_argument("--out", required=True, type=Path, help="directory to create")
    parser.add_argument("--dtype", default="float32", choices=sorted(hf_format.DTYPES), help="of the exported weights")
    parser.add_argument("--step", type=int, help="checkpoint to export; the last one if left out")
    parser.add_argument(
        "--max-shard-size", type=shard_size, default="5GB", metavar="SIZE", help="of one weight file (default 5GB)"
    )
    add_yarn_options(parser)
    parser.add_argument("--force", action="store_true", help="replace an exported model at --out")
    args = parser.parse_args(argv)
    with user_errors():
        check_replaceable(args.out, args.force)  # before the weights are read
        model, warning = apply_yarn_options(load_model(args.model, args.step), args)
        for text in filter(None, (warning, hf_format.portability_warning(model.config))):
            print(f"warning: {text}", file=sys.stderr)
        found = export(model, args.out, args.dtype, args.force, args.max_shard_size)
        print(
            f"{args.out}: {architecture(model)}, {args.dtype}, step {model.step} of {args.model}; read back and equal"
        )
        print(found)


if __name__ == "__main__":
    main()
