"""The command line of evaluate.py: its options, and which of them go together."""

from __future__ import annotations

import argparse
from pathlib import Path

from minimind_jax.errors import UserError
from minimind_jax.evaluation.scoring import BATCH_TOKENS
from minimind_jax.evaluation.task import TaskOptions
from minimind_jax.evaluation.tasks import TASKS


def make_parser(description: str) -> argparse.ArgumentParser:
    """All options but YaRN's."""
    named = "; ".join(f"{name}: {kind.what}" for name, kind in TASKS.items())
    p = argparse.ArgumentParser(description=description)
    p.add_argument(
        "--model", required=True, action="append", help="workdir[@STEP] or Hugging Face directory; repeatable"
    )
    p.add_argument("--task", action="append", metavar="NAME[:PATH]", help=f"loss if left out; repeatable. {named}")
    p.add_argument("--data", type=Path, help="the file or directory of a single task")
    p.add_argument("--step", type=int, help="checkpoint of a single workdir; the last one if left out")
    way = p.add_mutually_exclusive_group()
    way.add_argument("--chat", dest="chat", action="store_true", default=None, help="ask through the chat template")
    way.add_argument("--plain", dest="chat", action="store_false", help="ask as plain text, as of a base model")
    p.add_argument("--shots", type=int, default=0, metavar="K", help="solved examples before each item")
    p.add_argument("--shots-from", type=Path, metavar="FILE", help="the examples' file, if it is another one")
    p.add_argument("--limit", type=int, metavar="N", help="ask N items only, spread evenly over each task")
    p.add_argument("--samples", type=int, default=1, metavar="N", help="answers per question, for pass@k")
    p.add_argument("--temperature", type=float, default=0.0, help="of generated answers; 0 = greedy (default)")
    p.add_argument("--k", default="", metavar="K,...", help="the k of pass@k; 1 and --samples if left out")
    p.add_argument("--max-new-tokens", type=int, metavar="N", help="of a generated answer; each task has its own")
    p.add_argument("--batch-tokens", type=int, help=f"loss: padded tokens in one forward pass ({BATCH_TOKENS})")
    p.add_argument("--by-length", action="store_true", help="loss: also by position in the document")
    p.add_argument("--by-group", action="store_true", help="also by subject, family or language")
    p.add_argument("--json", type=Path, help="file to write the result to")
    p.add_argument("--answers", type=Path, metavar="DIR", help="directory for every item's answer, as jsonl")
    p.add_argument("--plot", type=Path, metavar="PNG", help="picture to write: bars with standard errors")
    return p


def check_options(args: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together, and for places that cannot be written."""
    tasks = [spec.partition(":")[0] for spec in args.task or ["loss"]]
    if args.chat is False and tasks == ["loss"]:
        raise UserError("--plain is a way to ask questions: add --task questions, or leave --plain away")
    for option, given in (("--batch-tokens", args.batch_tokens is not None), ("--by-length", args.by_length)):
        if given and "loss" not in tasks:
            raise UserError(f"{option} belongs to --task loss: leave it away for --task {tasks[0]}")
    if args.data is not None and (len(tasks) > 1 or (args.task and ":" in args.task[0])):
        raise UserError("--data is for a single task without a path: write --task NAME:PATH for each")
    for twice in {path for path in args.model if args.model.count(path) > 1}:
        raise UserError(f"--model {twice} is given twice: leave one away")
    if args.step is not None and len(args.model) > 1:
        raise UserError("--step belongs to a single --model: write --model DIR@STEP for each")
    for option, path in (("--json", args.json), ("--plot", args.plot)):
        if path and (path.is_dir() or not path.parent.is_dir()):
            raise UserError(f"{option} {path} cannot be written: name a file in a directory that exists")
    if args.answers and (args.answers.is_file() or not args.answers.parent.is_dir()):
        raise UserError(f"--answers {args.answers} is no place for files: name a directory, in one that exists")


def task_options(args: argparse.Namespace) -> TaskOptions:
    """What the tasks are told. Raises UserError."""
    try:
        pass_at = tuple(int(k) for k in args.k.split(",") if k)
    except ValueError:
        raise UserError(f"--k {args.k} is not a list of whole numbers, such as 1,5,10") from None
    return TaskOptions(
        args.data, args.shots, args.shots_from, args.limit, args.chat, args.samples, args.temperature, pass_at,
        args.max_new_tokens, args.batch_tokens,
    )  # fmt: skip
