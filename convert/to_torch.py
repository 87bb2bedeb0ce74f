"""Exports a model as a PyTorch state dict (.pth) with MiniMind's names, as its scripts load it.

    python -m convert.to_torch --model WORKDIR --out FILE.pth [--dtype float16] [--step N] [--force]

The file holds tensors only, no config and no tokenizer. It is read back and compared bit by bit before
it appears.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from convert import pth
from convert.from_torch import Given, infer_config
from convert.output import new_file
from minimind_jax import hf_format
from minimind_jax.config import RopeScaling
from minimind_jax.errors import UserError, user_errors
from minimind_jax.workdir import LoadedModel, load_model, tokenizer_directory


def export(model: LoadedModel, out: Path, dtype: str = "float16", force: bool = False) -> None:
    """Writes `model` to the file `out` and verifies it.

    Args:
      dtype: of the exported weights: float16, as MiniMind saves them, bfloat16 or float32.
      force: replace a .pth that is at `out`.

    Raises:
      UserError: torch is not installed, `out` is taken, a weight does not fit `dtype`, or what was written
        reads back differently.
    """
    check_free(out, force)
    pth.import_torch()
    cast = hf_format.cast_params(model.params, dtype)
    with new_file(out) as temporary:
        pth.write(temporary, cast, model.config)
        verify(model, temporary, cast)


def verify(model: LoadedModel, file: Path, cast: dict) -> None:
    """Reads an export back, as `convert.from_torch` does, and compares it with `cast`. Raises UserError."""
    state = pth.StateDict(file)
    read = infer_config(file, state.shapes, Given.of(model.config), model.config.tie_embeddings)
    if read != dataclasses.replace(model.config, rope_scaling=RopeScaling()):
        raise UserError("the exported shapes read back as another architecture: nothing was kept")
    written = hf_format.from_hf_tensors(state.__getitem__, model.config)
    for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(cast), jax.tree.leaves(written), strict=True):
        if not np.array_equal(ours.astype(np.float32).view(np.uint32), theirs.view(np.uint32)):
            name = ".".join(key.key for key in path)
            raise UserError(f"the exported parameter {name} reads back differently: nothing was kept")
    if model.config.tie_embeddings and not np.array_equal(state[hf_format.LM_HEAD], state[hf_format.EMBED]):
        raise UserError(f"the exported {hf_format.LM_HEAD} reads back differently: nothing was kept")


def check_free(out: Path, force: bool) -> None:
    """Raises UserError unless `out` is free, or `force` is given and it is a file that torch.save has written."""
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise UserError(f"{out} exists already: name another file, or replace it with --force")
    if not out.is_file() or not zipfile.is_zipfile(out):
        raise UserError(f"{out} is no .pth file, so --force does not replace it: name another file")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m convert.to_torch", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="workdir or Hugging Face directory")
    parser.add_argument("--out", required=True, type=Path, help="file to create, such as full_sft_512.pth")
    parser.add_argument("--dtype", default="float16", choices=sorted(hf_format.DTYPES), help="default float16")
    parser.add_argument("--step", type=int, help="checkpoint to export; the last one if left out")
    parser.add_argument("--force", action="store_true", help="replace a .pth file at --out")
    args = parser.parse_args(argv)
    with user_errors():
        check_free(args.out, args.force)  # before the weights are read
        model = load_model(args.model, args.step)
        export(model, args.out, args.dtype, args.force)
        print(f"{args.out}: {args.dtype}, step {model.step} of {args.model}; read back and equal")
        flags = f"--tokenizer {tokenizer_directory(args.model)} {Given.of(model.config).flags()}".rstrip()
        print(f"back:  python -m convert.from_torch --weights {args.out} --out WORKDIR {flags}")
        if model.config.rope_scaling.type != "none":
            print(
                "warning: the file cannot hold the model's rope_scaling: whoever loads it has to know", file=sys.stderr
            )


if __name__ == "__main__":
    main()
