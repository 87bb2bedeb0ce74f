"""Imports a Hugging Face directory (Llama, Qwen3, MiniMind) as a workdir with parameters at step 0 and no optimiser.

    python -m convert.from_hf --model HF_DIR --out WORKDIR

Directories of MiniMind's own class (MiniMindForCausalLM, dense) are read too. A pytorch_model.bin needs torch.
To train on from it, give a new run `init_from=WORKDIR`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from convert import minimind_hf
from convert.output import new_directory
from convert.pickled import open_pickled, read_params
from minimind_jax import hf_format
from minimind_jax.errors import UserError, user_errors
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.workdir import Workdir, is_workdir, load_model, save_imported


def import_hf(source: Path, out: Path) -> str:
    """Writes the workdir `out`.

    Returns: what was found and assumed in a directory of MiniMind's own class; "" for others.

    Raises:
      UserError: `out` exists; `source` is a workdir, or not a model that we can read.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists already: name a workdir that is not there yet")
    if is_workdir(source):
        raise UserError(f"{source} is a workdir already, not a Hugging Face directory")
    if (source / "config.json").is_file() and hf_format.is_minimind(hf_format.read_values(source)):
        config, params, said = minimind_hf.read(source)
        tokenizer = load_tokenizer(str(source))
    elif state := open_pickled(source):
        config, said = hf_format.read_config(source), ""
        params, tokenizer = read_params(source, config, state), load_tokenizer(str(source))
    else:
        model, said = load_model(source), ""
        config, params, tokenizer = model.config, model.params, model.tokenizer
    with new_directory(out) as temporary:
        save_imported(Workdir(temporary), config, params, tokenizer, str(source))
    return said


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m convert.from_hf", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, type=Path, help="Hugging Face model directory")
    parser.add_argument("--out", required=True, type=Path, help="workdir to create")
    args = parser.parse_args(argv)
    with user_errors():
        if said := import_hf(args.model, args.out):
            print(f"{args.model}: {said}")
        print(f"{args.out}: parameters of {args.model} at step 0, no optimiser; train on with init_from={args.out}")


if __name__ == "__main__":
    main()
