"""How well models do: the loss on held-out files, exact answers, multiple choice, tool calls; models side by side.

python evaluate.py --model WORKDIR_OR_HF_DIR --data FILE.jsonl [--json OUT]       texts or conversations
python evaluate.py --model ... --data LONG.jsonl --by-length [--yarn-factor 4]    loss by position in the document
python evaluate.py --model ... --task questions --data QUESTIONS.jsonl            of minimind_jax.data.generate
python evaluate.py --model ... --task questions --plain --data QUESTIONS.jsonl    of a model without SFT
python evaluate.py --model A --model B@STEP --task gsm8k:FILE --task ...          any tasks and models
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from minimind_jax import evaluation
from minimind_jax.errors import user_errors
from minimind_jax.evaluation import Comparison, ModelInfo, Task, TaskResult
from minimind_jax.long_context import add_yarn_options, apply_yarn_options, beyond_warning
from minimind_jax.workdir import load_model, short_names, split_step, write_atomically

_SINGLE = ("loss", "questions")  # one of them alone with one model: shown and written in a form of its own


def main() -> None:
    parser = evaluation.make_parser(__doc__.split("\n")[0])
    add_yarn_options(parser)
    args = parser.parse_args()
    with user_errors():
        evaluation.check_options(args)
        specs = list(dict.fromkeys(args.task or ["loss"]))
        tasks = evaluation.open_tasks(specs, evaluation.task_options(args))
        runs = [run(path, name, tasks, args) for path, name in zip(args.model, short_names(args.model), strict=True)]
        models, columns = zip(*runs, strict=True)
        comparison = Comparison(models, evaluation.task_labels(specs), list(zip(*columns, strict=True)))
        if len(models) == len(tasks) == 1 and tasks[0].name in _SINGLE:
            written = show_single(tasks[0], columns[0][0], models[0], specs[0], args)
        else:
            written = comparison.to_dict()
            show(comparison, args)
        if args.json:
            write_atomically(args.json, json.dumps(written, indent=2, ensure_ascii=False) + "\n")
        if args.answers:
            comparison.write_answers(args.answers)
        if args.plot:
            evaluation.plot_comparison(comparison, args.plot)


def run(path: str, name: str, tasks: list[Task], args: argparse.Namespace) -> tuple[ModelInfo, list[TaskResult]]:
    """One model on all tasks; it is forgotten afterwards, so that memory holds one at a time."""
    directory, step = split_step(path) if args.step is None else (path, args.step)
    model, warning = apply_yarn_options(load_model(directory, step), args)
    of = f"{name}: " if len(args.model) > 1 else ""
    warn(of, warning)
    yarn = f"{args.yarn_factor:g} x {model.config.rope_scaling.original_max_seq_len}" if args.yarn_factor else ""
    results = [task.run(model) for task in tasks]
    for result in results:
        if result.task == "loss":
            longest = result.details["longest"]
            warn(of, beyond_warning(model, longest, "documents", "--by-length shows the loss beyond"))
    return evaluation.model_info(name, path, model, yarn), results


def warn(of: str, warning: str) -> None:
    if warning:
        print(f"warning: {of}{warning}", file=sys.stderr)


def show(comparison: Comparison, args: argparse.Namespace) -> None:
    print(evaluation.models_table(comparison), evaluation.comparison_table(comparison), sep="\n\n")
    if args.by_group:
        print("", evaluation.groups_table(comparison), sep="\n")
    if args.by_length:
        for row in comparison.results:
            for model, result in zip(comparison.models, row, strict=True):
                if result.task == "loss":
                    print("", model.name, positions(result), sep="\n")
    if shown := evaluation.examples(comparison):
        print("", shown, sep="\n")


def positions(result: TaskResult) -> str:
    return evaluation.positions_table([evaluation.PositionScore(**score) for score in result.details["by_position"]])


def show_single(
    task: Task, result: TaskResult, model: ModelInfo, spec: str, args: argparse.Namespace
) -> dict[str, Any]:
    """The forms of `loss` and of `questions` alone; returns what --json writes."""
    written = dict(result.details)
    if isinstance(task, evaluation.QuestionsTask):
        score = task.score(result)
        print(evaluation.questions_table(score))
        written["answers"] = score.answers
    else:
        by_position = written.pop("by_position")
        for key, value in written.items():
            print(f"{key:14} {value:.6g}" if isinstance(value, float) else f"{key:14} {value}")
        if args.by_length:
            print(positions(result))
            written["by_position"] = by_position
    source = {"model": model.path, "step": model.step, "data": str(args.data or spec.partition(":")[2])}
    if model.yarn:
        source["yarn"] = model.yarn
    for key, value in source.items():
        print(f"{key:14} {value}")
    return written | source


if __name__ == "__main__":
    main()
