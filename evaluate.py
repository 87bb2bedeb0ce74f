"""Loss and bits per byte of a model on held-out text.

python evaluate.py --model WORKDIR_OR_HF_DIR --data FILE.jsonl [--json OUT]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from minimind_jax.errors import UserError, user_errors
from minimind_jax.evaluation import evaluate_file
from minimind_jax.evaluation.text import BATCH_TOKENS
from minimind_jax.workdir import load_model, write_atomically


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="workdir or Hugging Face directory")
    parser.add_argument("--data", required=True, type=Path, help='jsonl file of {"text": ...} records')
    parser.add_argument("--json", type=Path, help="file to write the result to")
    parser.add_argument("--step", type=int, help="checkpoint of the workdir; the last one if left out")
    parser.add_argument("--batch-tokens", type=int, default=BATCH_TOKENS, help="padded tokens in one forward pass")
    args = parser.parse_args()
    with user_errors():
        if args.batch_tokens < 1:
            raise UserError(f"--batch-tokens={args.batch_tokens} must be at least 1")
        if args.json and (args.json.is_dir() or not args.json.parent.is_dir()):
            raise UserError(f"--json {args.json} cannot be written: name a file in a directory that exists")
        model = load_model(args.model, args.step)
        score = evaluate_file(model, args.data, args.batch_tokens)
        result = {
            **dataclasses.asdict(score),
            "model": args.model,
            "step": model.step,
            "data": str(args.data),
        }
        for key, value in result.items():
            print(f"{key:14} {value:.6g}" if isinstance(value, float) else f"{key:14} {value}")
        if args.json:
            write_atomically(args.json, json.dumps(result, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
