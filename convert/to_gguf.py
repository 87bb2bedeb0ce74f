"""Exports a model as one GGUF file for llama.cpp and ollama: architecture qwen3 with qk_norm, llama without.

    python -m convert.to_gguf --model WORKDIR --out FILE.gguf [--type q8_0] [--step N] [--yarn-factor F]
                              [--modelfile] [--force]

Tokenizer and chat template are in the file. Every export is read back and compared with the model before
FILE.gguf appears: exactly, or within the rounding of q8_0, q5_1 and q4_0. These two keep the embedding and the output
layer in q8_0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf import GGMLQuantizationType as TensorType

from convert import gguf_format
from convert.gguf_tokenizer import vocabulary
from convert.ollama import modelfile
from convert.output import new_file
from minimind_jax import hf_format
from minimind_jax.errors import UserError, user_errors
from minimind_jax.long_context import add_yarn_options, apply_yarn_options
from minimind_jax.workdir import LoadedModel, load_model, write_atomically

# The dtype whose range the weights must keep to. The others have float16 scales, and fall back to float16.
_RANGES = {"f32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Exported:
    architecture: str  # llama | qwen3
    fallbacks: list[str]  # matrices that are f16 because blocks of 32 do not fill their rows
    caveat: str  # what llama.cpp does differently all the same; "" where nothing


def export(
    model: LoadedModel, out: Path, type_name: str = "f16", *, with_modelfile: bool = False, force: bool = False
) -> Exported:
    """Writes `model` to the file `out` and verifies it.

    Args:
      type_name: of the matrices: f32 | f16 | bf16 | q8_0 | q5_1 | q4_0. Vectors stay float32.
      with_modelfile: write ollama's Modelfile beside it.
      force: replace the files that are there.

    Raises:
      UserError: a file is there already, llama.cpp has no equal of the tokenizer, a weight does not fit the type, the
        chat template is none that a Modelfile can express, or what was written reads back differently.
    """
    check_free(out, with_modelfile, force)
    words = vocabulary(model.tokenizer, model.config.vocab_size)
    recipe = modelfile(model.tokenizer, out.name) if with_modelfile else ""
    hf_format.cast_params(model.params, _RANGES.get(type_name, "float16"))  # refuses, by name, what does not fit
    content = gguf_format.tensors(model.params, model.config, type_name)
    n_params = sum(tensor.value.size for tensor in content)
    values = gguf_format.metadata(model.config, words, model.path.resolve().name, n_params, type_name)
    with new_file(out) as temporary:
        gguf_format.write(temporary, values, content)
        gguf_format.verify(temporary, values, content)
    if recipe:
        write_atomically(out.with_name("Modelfile"), recipe)
    fallbacks = [t.name for t in content if t.type == TensorType.F16 and type_name != "f16"]
    return Exported(values["general.architecture"], fallbacks, words.caveat)


def check_free(out: Path, with_modelfile: bool, force: bool) -> None:
    """Raises UserError unless `out`, and the Modelfile beside it, may be written."""
    files = [(out, "GGUF file", b"GGUF"), (out.with_name("Modelfile"), "Modelfile", b"FROM ")]
    for file, kind, start in files if with_modelfile else files[:1]:
        if not file.exists() and not file.is_symlink():
            continue
        if not force:
            raise UserError(f"{file} exists already: name another file, or replace it with --force")
        if not file.is_file() or _first_bytes(file, len(start)) not in (start, b""):
            raise UserError(f"{file} is no {kind}, so --force does not replace it: name another file")


def _first_bytes(file: Path, n: int) -> bytes:
    with open(file, "rb") as stream:
        return stream.read(n)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m convert.to_gguf", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="workdir or Hugging Face directory")
    parser.add_argument("--out", required=True, type=Path, help="file to create, such as model.gguf")
    parser.add_argument("--type", default="f16", choices=list(gguf_format.TYPES), help="of the matrices (default f16)")
    parser.add_argument("--step", type=int, help="checkpoint to export; the last one if left out")
    add_yarn_options(parser)
    parser.add_argument("--modelfile", action="store_true", help="write ollama's Modelfile beside it")
    parser.add_argument("--force", action="store_true", help="replace an exported file at --out")
    args = parser.parse_args(argv)
    with user_errors():
        check_free(args.out, args.modelfile, args.force)  # before the weights are read
        model, warning = apply_yarn_options(load_model(args.model, args.step), args)
        if warning:
            print(f"warning: {warning}", file=sys.stderr)
        done = export(model, args.out, args.type, with_modelfile=args.modelfile, force=args.force)
        if done.caveat:
            print(f"warning: {done.caveat}", file=sys.stderr)
        if done.fallbacks:
            shown = ", ".join(done.fallbacks[:3]) + (", ..." if len(done.fallbacks) > 3 else "")
            print(f"{len(done.fallbacks)} matrices are f16, for their rows are no multiples of 32 values: {shown}")
        print(f"{args.out}: {done.architecture}, {args.type}, step {model.step} of {args.model}; read back and equal")


if __name__ == "__main__":
    main()
