"""Exports a model as a Hugging Face directory of a standard class: Qwen3 with qk_norm, Llama without.

    python -m convert.to_hf --model WORKDIR --out DIR [--dtype bfloat16] [--step N] [--force]

config.json, generation_config.json, model.safetensors, tokenizer and chat template; transformers,
vLLM, SGLang and llama.cpp load the result as it is. Every export is read back and compared bit by
bit before DIR appears.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from convert.output import check_replaceable, new_directory
from minimind_jax import hf_format
from minimind_jax.errors import UserError, user_errors
from minimind_jax.tokenizer import Tokenizer, load_tokenizer
from minimind_jax.workdir import LoadedModel, load_model


def export(model: LoadedModel, out: Path, dtype: str = "float32", force: bool = False) -> None:
    """Writes `model` to the directory `out` and verifies it.

    Args:
      dtype: of the exported weights: float32 | bfloat16 | float16.
      force: replace an exported model that is at `out`.

    Raises:
      UserError: `out` is taken, a weight does not fit `dtype`, or what was written reads back differently.
    """
    check_replaceable(out, force)
    if out.resolve() in model.path.resolve().parents:
        raise UserError(f"{out} contains the model {model.path}: name another directory")
    with new_directory(out) as temporary:
        model.tokenizer.save(temporary)
        hf_format.write_config(temporary, model.config, dtype=dtype, **_special_ids(model.tokenizer))
        hf_format.write_params(temporary, model.params, model.config, dtype)
        verify(model, temporary, dtype)


def verify(model: LoadedModel, directory: Path, dtype: str) -> None:
    """Reads an export back and compares it with the live model, cast to `dtype`, bit by bit. Raises UserError."""
    ids = _special_ids(model.tokenizer)
    read, live = (hf_format.hf_config(c, dtype=dtype, **ids) for c in (hf_format.read_config(directory), model.config))
    if read != live:
        raise UserError("the exported config.json reads back as another architecture: nothing was kept")
    if load_tokenizer(str(directory)).fingerprint != model.tokenizer.fingerprint:
        raise UserError("the exported tokenizer reads back differently: nothing was kept")
    written = hf_format.read_params(directory, model.config)
    expected = jax.tree.map(lambda leaf: leaf.astype(np.float32), hf_format.cast_params(model.params, dtype))
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(written), strict=True
    ):
        if not np.array_equal(ours.view(np.uint32), theirs.view(np.uint32)):
            name = ".".join(key.key for key in path)
            raise UserError(f"the exported parameter {name} reads back differently: nothing was kept")


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    return {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m convert.to_hf", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="workdir (or Hugging Face directory, to change its dtype)")
    parser.add_argument("--out", required=True, type=Path, help="directory to create")
    parser.add_argument("--dtype", default="float32", choices=sorted(hf_format.DTYPES), help="of the exported weights")
    parser.add_argument("--step", type=int, help="checkpoint to export; the last one if left out")
    parser.add_argument("--force", action="store_true", help="replace an exported model at --out")
    args = parser.parse_args(argv)
    with user_errors():
        check_replaceable(args.out, args.force)  # before the weights are read
        model = load_model(args.model, args.step)
        if warning := hf_format.portability_warning(model.config):
            print(f"warning: {warning}", file=sys.stderr)
        export(model, args.out, args.dtype, args.force)
        architecture = "Qwen3ForCausalLM" if model.config.qk_norm else "LlamaForCausalLM"
        print(f"{args.out}: {architecture}, {args.dtype}, step {model.step} of {args.model}; read back and equal")


if __name__ == "__main__":
    main()
