"""Next-token cross-entropy, the mean over the global batch's target tokens (pretraining, SFT)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from minimind_jax.model import Params, output_matrix
from minimind_jax.objectives.objective import Batch, Denominators, ForwardFn, Metrics, Objective
from minimind_jax.objectives.token_logprobs import token_logprobs


def target_nll(forward: ForwardFn, params: Params, batch: Batch) -> jax.Array:
    """Summed negative log-likelihood of the target tokens, in nats; 0 where there are none."""
    logprobs = token_logprobs(forward(params, batch), output_matrix(params), batch["targets"])  # (B, T)
    return -jnp.sum(jnp.where(batch["target_mask"], logprobs, 0))


def _denominators(batch: Batch) -> Denominators:
    return {"target_tokens": jnp.sum(batch["target_mask"], dtype=jnp.int32)}


def _loss(forward: ForwardFn, params: Params, batch: Batch, denominators: Denominators) -> tuple[jax.Array, Metrics]:
    # A batch without targets divides 0 by 1: its loss and gradients are 0, never NaN.
    return target_nll(forward, params, batch) / jnp.maximum(denominators["target_tokens"], 1), {}


language_modelling = Objective(_denominators, _loss)
