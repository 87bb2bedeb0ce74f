"""Published multiple-choice benchmarks from local files, scored by log-likelihood."""

from collections.abc import Mapping

from minimind_jax.evaluation.benchmarks.task import ChoiceTask, open_choices

# Name -> what it asks, and what its path names.
BENCHMARKS: Mapping[str, tuple[str, str]] = {
    "ceval": ("C-Eval: Chinese exams of 52 subjects", "C-Eval's directory of csv files, or one of them"),
    "cmmlu": ("CMMLU: Chinese exams of 67 subjects", "CMMLU's directory of csv files, or one of them"),
    "arc_easy": ("ARC-Easy: science questions for schools", "an ARC file, jsonl or parquet"),
    "arc_challenge": ("ARC-Challenge: the harder ones", "an ARC file, jsonl or parquet"),
    "hellaswag": ("HellaSwag: how a scene goes on", "a HellaSwag file, jsonl or parquet"),
    "piqa": ("PIQA: everyday physics", "a PIQA file, jsonl or parquet"),
    "openbookqa": ("OpenBookQA: elementary science", "an OpenBookQA file, jsonl or parquet"),
    "siqa": ("Social IQa: people and their motives", "a Social IQa file, jsonl or parquet"),
    "choices": ("any multiple choice", "a jsonl file of `question`, `choices` and `answer`"),
}

__all__ = ["BENCHMARKS", "ChoiceTask", "open_choices"]
