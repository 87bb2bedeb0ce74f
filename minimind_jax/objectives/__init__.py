"""Loss functions, all built on the same per-token log-probabilities."""

from minimind_jax.objectives.lm import language_modelling, target_nll
from minimind_jax.objectives.objective import Batch, ForwardFn, Objective
from minimind_jax.objectives.token_logprobs import token_logprobs

__all__ = ["Batch", "ForwardFn", "Objective", "language_modelling", "target_nll", "token_logprobs"]
