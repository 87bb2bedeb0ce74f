"""Evaluation: how well a model does on held-out files."""

from minimind_jax.evaluation.text import TextScore, evaluate_file, score_texts

__all__ = ["TextScore", "evaluate_file", "score_texts"]
