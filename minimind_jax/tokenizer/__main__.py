"""python -m minimind_jax.tokenizer train|inspect"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from minimind_jax.errors import UserError, user_errors
from minimind_jax.tokenizer.corpus import LANGUAGES, Corpus, find_files
from minimind_jax.tokenizer.inspect import format_reports, measure
from minimind_jax.tokenizer.load import load_tokenizer
from minimind_jax.tokenizer.train import Sample, train


def main(argv: Sequence[str]) -> None:
    """Runs the command. Raises UserError."""
    args = _parser().parse_args(argv)
    if not 0 <= args.holdout < 1:
        raise UserError(f"--holdout {args.holdout} must be at least 0 and less than 1")
    args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m minimind_jax.tokenizer", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)

    data = argparse.ArgumentParser(add_help=False)
    data.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="GLOB",
        help="jsonl with text, conversations (or messages), or chosen and rejected",
    )

    command = commands.add_parser("train", parents=[data], help="train a byte-level BPE", allow_abbrev=False)
    command.add_argument("--vocab-size", type=int, default=6400, help="entries in total (default: %(default)s)")
    command.add_argument("--out", required=True, type=Path, help="directory to write: missing or empty")
    command.add_argument(
        "--english-per-chinese",
        type=float,
        default=3.0,
        metavar="R",
        help="English characters for each Chinese one; a Chinese character is three bytes, so 3 gives both languages "
        "the same bytes, 1 the same characters; 0 takes all data as they are (default: %(default)s)",
    )
    command.add_argument(
        "--holdout",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the documents to leave out, chosen by their content (default: %(default)s)",
    )
    command.set_defaults(run=_train)

    command = commands.add_parser("inspect", parents=[data], help="characters and bytes a token", allow_abbrev=False)
    command.add_argument("--tokenizer", default="", metavar="DIR", help="default: the shipped one")
    command.add_argument(
        "--holdout",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="measure only the documents that train --holdout SHARE leaves out (default: all)",
    )
    command.set_defaults(run=_inspect)
    return parser


def _train(args: argparse.Namespace) -> None:
    if not 0 <= args.english_per_chinese < float("inf"):
        raise UserError(f"--english-per-chinese {args.english_per_chinese} must be at least 0")
    corpus = Corpus(find_files(args.data), args.holdout)
    sample = train(corpus, args.vocab_size, args.out, args.english_per_chinese, sys.stderr.isatty())
    _print_sample(sample)
    _print_skipped(corpus)
    print(f"wrote {args.vocab_size:,} entries to {args.out}")


def _inspect(args: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(args.tokenizer)
    corpus = Corpus(find_files(args.data), args.holdout, held_out=args.holdout > 0)
    print(format_reports(tokenizer, measure(tokenizer, corpus)))
    _print_skipped(corpus)


def _print_sample(sample: Sample) -> None:
    for name in LANGUAGES:
        share = f"{100 * sample.shares[name]:.1f} % of the documents"
        print(f"{name}: trained on {sample.characters[name]:,} characters ({share})")


def _print_skipped(corpus: Corpus) -> None:
    if corpus.skipped.count:
        print(f"skipped {corpus.skipped.count:,} unusable lines, the first at {corpus.skipped.first}")


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
