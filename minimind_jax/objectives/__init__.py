"""Loss functions, all built on the same per-token log-probabilities."""

from minimind_jax.objectives.lm import language_modelling, target_nll
from minimind_jax.objectives.objective import Batch, Denominators, ForwardFn, Metrics, Objective
from minimind_jax.objectives.preference import pair_losses, preference_optimization, sequence_logprobs
from minimind_jax.objectives.token_logprobs import token_logprobs

__all__ = [
    "Batch",
    "Denominators",
    "ForwardFn",
    "Metrics",
    "Objective",
    "language_modelling",
    "pair_losses",
    "preference_optimization",
    "sequence_logprobs",
    "target_nll",
    "token_logprobs",
]
