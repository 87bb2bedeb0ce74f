"""Evaluation: how well a model does on held-out files and tasks, and how models compare."""

from minimind_jax.evaluation.answers import describe_answers, repetition_rate
from minimind_jax.evaluation.arguments import check_options, make_parser, task_options
from minimind_jax.evaluation.comparison import Comparison, ModelInfo, model_info, task_labels
from minimind_jax.evaluation.comparison_plot import plot_comparison
from minimind_jax.evaluation.comparison_table import comparison_table, examples, groups_table, models_table
from minimind_jax.evaluation.conversations import score_conversations
from minimind_jax.evaluation.file import evaluate_file
from minimind_jax.evaluation.positions import PositionScore, positions_table
from minimind_jax.evaluation.questions import QuestionsScore, ask
from minimind_jax.evaluation.questions_table import questions_table
from minimind_jax.evaluation.questions_task import QuestionsTask
from minimind_jax.evaluation.result import Difference, TaskResult
from minimind_jax.evaluation.scoring import BATCH_TOKENS, TextScore
from minimind_jax.evaluation.task import Task, TaskOptions
from minimind_jax.evaluation.tasks import TASKS, open_task, open_tasks
from minimind_jax.evaluation.text import score_texts

__all__ = [
    "BATCH_TOKENS",
    "TASKS",
    "Comparison",
    "Difference",
    "ModelInfo",
    "PositionScore",
    "QuestionsScore",
    "QuestionsTask",
    "Task",
    "TaskOptions",
    "TaskResult",
    "TextScore",
    "ask",
    "check_options",
    "comparison_table",
    "describe_answers",
    "evaluate_file",
    "examples",
    "groups_table",
    "make_parser",
    "model_info",
    "models_table",
    "open_task",
    "open_tasks",
    "plot_comparison",
    "positions_table",
    "questions_table",
    "repetition_rate",
    "score_conversations",
    "score_texts",
    "task_labels",
    "task_options",
]
