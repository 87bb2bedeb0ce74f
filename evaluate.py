"""How well a model does on a held-out file: its loss, or how many questions it answers right.

python evaluate.py --model WORKDIR_OR_HF_DIR --data FILE.jsonl [--json OUT]       texts or conversations
python evaluate.py --model ... --data LONG.jsonl --by-length [--yarn-factor 4]    loss by position in the document
python evaluate.py --model ... --task questions --data QUESTIONS.jsonl            of minimind_jax.data.generate
python evaluate.py --model ... --task questions --plain --data QUESTIONS.jsonl    of a model without SFT
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from minimind_jax.errors import UserError, user_errors
from minimind_jax.evaluation import BATCH_TOKENS, ask, evaluate_file, positions_table, questions_table
from minimind_jax.long_context import add_yarn_options, apply_yarn_options, beyond_warning
from minimind_jax.workdir import LoadedModel, load_model, write_atomically


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="workdir or Hugging Face directory")
    parser.add_argument(
        "--task",
        choices=TASKS,
        default="loss",
        help="loss: nats per target token and bits per byte (default); questions: exact answers",
    )
    parser.add_argument("--data", required=True, type=Path, help="jsonl file of texts, conversations or questions")
    parser.add_argument("--plain", action="store_true", help="questions as pretraining texts have them, not as a chat")
    parser.add_argument("--json", type=Path, help="file to write the result to")
    parser.add_argument("--step", type=int, help="checkpoint of the workdir; the last one if left out")
    parser.add_argument("--batch-tokens", type=int, help=f"loss: padded tokens in one forward pass ({BATCH_TOKENS})")
    parser.add_argument("--by-length", action="store_true", help="loss: also by position in the document")
    add_yarn_options(parser)
    args = parser.parse_args()
    with user_errors():
        check(args)
        model, warning = apply_yarn_options(load_model(args.model, args.step), args)
        warn(warning)
        source = {"model": args.model, "step": model.step, "data": str(args.data)}
        if args.yarn_factor is not None:
            source["yarn"] = f"{args.yarn_factor:g} x {model.config.rope_scaling.original_max_seq_len}"
        result = TASKS[args.task](model, args) | source
        for key, value in source.items():
            print(f"{key:14} {value}")
        if args.json:
            write_atomically(args.json, json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def check(args: argparse.Namespace) -> None:
    if args.plain and args.task != "questions":
        raise UserError("--plain is a way to ask questions: add --task questions, or leave --plain away")
    for option, given in (("--batch-tokens", args.batch_tokens is not None), ("--by-length", args.by_length)):
        if given and args.task != "loss":
            raise UserError(f"{option} belongs to --task loss: leave it away for --task {args.task}")
    if args.batch_tokens is not None and args.batch_tokens < 1:
        raise UserError(f"--batch-tokens={args.batch_tokens} must be at least 1")
    if args.json and (args.json.is_dir() or not args.json.parent.is_dir()):
        raise UserError(f"--json {args.json} cannot be written: name a file in a directory that exists")


def warn(warning: str) -> None:
    if warning:
        print(f"warning: {warning}", file=sys.stderr)


def loss(model: LoadedModel, args: argparse.Namespace) -> dict[str, Any]:
    score = evaluate_file(model, args.data, args.batch_tokens or BATCH_TOKENS)
    result = dataclasses.asdict(score)
    by_position = result.pop("by_position")
    for key, value in result.items():
        print(f"{key:14} {value:.6g}" if isinstance(value, float) else f"{key:14} {value}")
    if args.by_length:
        print(positions_table(score.by_position))
        result["by_position"] = by_position
    warn(beyond_warning(model, score.longest, "documents", "--by-length shows the loss beyond"))
    return result


def questions(model: LoadedModel, args: argparse.Namespace) -> dict[str, Any]:
    score = ask(model, args.data, plain=args.plain)
    print(questions_table(score))
    return {**score.to_dict(), "plain": args.plain}


TASKS = {"loss": loss, "questions": questions}


if __name__ == "__main__":
    main()
