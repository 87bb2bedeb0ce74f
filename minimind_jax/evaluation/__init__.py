"""Evaluation: how well a model does on held-out files."""

from minimind_jax.evaluation.answers import describe_answers, repetition_rate
from minimind_jax.evaluation.conversations import score_conversations
from minimind_jax.evaluation.file import evaluate_file
from minimind_jax.evaluation.positions import PositionScore, positions_table
from minimind_jax.evaluation.questions import QuestionsScore, ask
from minimind_jax.evaluation.questions_table import questions_table
from minimind_jax.evaluation.scoring import BATCH_TOKENS, TextScore
from minimind_jax.evaluation.text import score_texts

__all__ = [
    "BATCH_TOKENS",
    "PositionScore",
    "QuestionsScore",
    "TextScore",
    "ask",
    "describe_answers",
    "evaluate_file",
    "positions_table",
    "questions_table",
    "repetition_rate",
    "score_conversations",
    "score_texts",
]
