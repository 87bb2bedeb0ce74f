"""python -m minimind_jax.data inspect --config configs/pretrain.py --config.data.path=a.jsonl --rows 3"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from minimind_jax.config import Config, from_recipe
from minimind_jax.data.inspect import print_rows
from minimind_jax.errors import UserError, user_errors
from minimind_jax.recipe import load_recipe
from minimind_jax.tokenizer import load_tokenizer


def main(argv: Sequence[str]) -> None:
    """Runs the command. Raises UserError."""
    parser = argparse.ArgumentParser(prog="python -m minimind_jax.data", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser(
        "inspect",
        help="print decoded rows, segments and targets marked, and what an epoch holds",
        usage="%(prog)s --config FILE[:ARG] [--config.KEY=VALUE ...] [--rows N]",
        allow_abbrev=False,
    )
    inspect.add_argument("--rows", type=int, default=3, help="rows to print (default: %(default)s)")
    args, recipe_flags = parser.parse_known_args(argv)
    if args.rows < 0:
        raise UserError(f"--rows={args.rows} must be at least 0")
    recipe, user_set = load_recipe([parser.prog, *recipe_flags])
    config = from_recipe(recipe, user_set)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    print_rows(config, load_tokenizer(_tokenizer_path(config, console)), args.rows, console)


def _tokenizer_path(config: Config, console: Console) -> str:
    """Of the tokenizer that training takes: `tokenizer`, else the begun run's own, else that of `init_from`."""
    from minimind_jax.workdir import Workdir, tokenizer_directory  # JAX and Orbax take seconds

    workdir = Workdir(Path(config.workdir))
    if not config.tokenizer and workdir.steps():
        return str(workdir.tokenizer)
    if config.tokenizer or not config.init_from:
        return config.tokenizer
    if (Path(config.init_from) / "config.json").is_file():
        return str(tokenizer_directory(config.init_from))
    console.print(f"note: {config.init_from} is not there yet: read with the shipped tokenizer")
    return ""


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
