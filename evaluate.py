"""How well a model does on a held-out file: its loss, or how many questions it answers right.

python evaluate.py --model WORKDIR_OR_HF_DIR --data FILE.jsonl [--json OUT]       texts or conversations
python evaluate.py --model ... --task questions --data QUESTIONS.jsonl            of minimind_jax.data.generate
python evaluate.py --model ... --task questions --plain --data QUESTIONS.jsonl    of a model without SFT
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from minimind_jax.errors import UserError, user_errors
from minimind_jax.evaluation import BATCH_TOKENS, ask, evaluate_file, questions_table
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
    args = parser.parse_args()
    with user_errors():
        check(args)
        model = load_model(args.model, args.step)
        source = {"model": args.model, "step": model.step, "data": str(args.data)}
        result = TASKS[args.task](model, args) | source
        for key, value in source.items():
            print(f"{key:14} {value}")
        if args.json:
            write_atomically(args.json, json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def check(args: argparse.Namespace) -> None:
    if args.plain and args.task != "questions":
        raise UserError("--plain is a way to ask questions: add --task questions, or leave --plain away")
    if args.batch_tokens is not None and args.task != "loss":
        raise UserError(f"--batch-tokens belongs to --task loss: leave it away for --task {args.task}")
    if args.batch_tokens is not None and args.batch_tokens < 1:
        raise UserError(f"--batch-tokens={args.batch_tokens} must be at least 1")
    if args.json and (args.json.is_dir() or not args.json.parent.is_dir()):
        raise UserError(f"--json {args.json} cannot be written: name a file in a directory that exists")


def loss(model: LoadedModel, args: argparse.Namespace) -> dict[str, Any]:
    result = dataclasses.asdict(evaluate_file(model, args.data, args.batch_tokens or BATCH_TOKENS))
    for key, value in result.items():
        print(f"{key:14} {value:.6g}" if isinstance(value, float) else f"{key:14} {value}")
    return result


def questions(model: LoadedModel, args: argparse.Namespace) -> dict[str, Any]:
    score = ask(model, args.data, plain=args.plain)
    print(questions_table(score))
    return {**score.to_dict(), "plain": args.plain}


TASKS = {"loss": loss, "questions": questions}


if __name__ == "__main__":
    main()
