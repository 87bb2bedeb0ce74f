"""Learning from pairs of a better and a worse answer: DPO and its relatives, on packed rows of whole pairs.

A batch has the arrays of every stage, (B, T): tokens, targets, segment_ids, positions, target_mask. Segment 2p + 1
of a row is the chosen, 2p + 2 the rejected side of its pair p. Two more arrays:

    pair_mask (B, P) bool         which pairs there are
    ref_logps (B, P, 2) float32   log p of [chosen, rejected] under the reference, summed over the target tokens;
                                  simpo and orpo do not look at it
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from minimind_jax.config import DpoConfig
from minimind_jax.model import Params, output_matrix
from minimind_jax.objectives.objective import Batch, Denominators, ForwardFn, Metrics, Objective
from minimind_jax.objectives.token_logprobs import token_logprobs

_DEFINED_ON_MEANS = ("ipo", "simpo", "orpo")


def pair_losses(
    config: DpoConfig,
    policy_chosen: jax.Array,
    policy_rejected: jax.Array,
    reference_chosen: jax.Array | float = 0.0,
    reference_rejected: jax.Array | float = 0.0,
) -> jax.Array:
    """The loss of each pair, without the SFT term.

    In the equations, h = log [pi(y_w) / pi_ref(y_w)] - log [pi(y_l) / pi_ref(y_l)], y_w is the chosen and y_l the
    rejected answer, l(z) = -log sigmoid(z), and e is `config.label_smoothing`.

    Args:
      policy_chosen, policy_rejected, reference_chosen, reference_rejected: log-probabilities of the answers, of any
        one shape: sums over an answer's tokens, or means for ipo, simpo, orpo and where config.logp is "mean".
        simpo and orpo know no reference: leave it 0.

    Returns: losses of the arguments' shape and dtype. They and their gradients are finite also for answers of
      probability 1, and of probabilities far below the smallest float32.
    """
    beta, e = config.beta, config.label_smoothing
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    h = chosen - rejected
    match config.loss:
        case "sigmoid":
            # DPO: Rafailov et al. 2023, arXiv:2305.18290, eq. 7: l(beta h). With e > 0 the conservative form of
            # Mitchell 2023, "A note on DPO with noisy preferences": (1 - e) l(beta h) + e l(-beta h).
            return (1 - e) * _logistic(beta * h) + e * _logistic(-beta * h)
        case "robust":
            # Chowdhury et al. 2024, arXiv:2403.00409: [(1 - e) l(beta h) - e l(-beta h)] / (1 - 2 e), whose
            # expectation over labels that are flipped with probability e is the loss of the true ones.
            return ((1 - e) * _logistic(beta * h) - e * _logistic(-beta * h)) / (1 - 2 * e)
        case "ipo":
            # Azar et al. 2023, arXiv:2310.12036, eq. 17: (h - 1 / (2 beta))^2, beta being their tau. h is of means,
            # or long answers would have to differ less per token than short ones.
            return (h - 1 / (2 * beta)) ** 2
        case "hinge":
            # SLiC: Zhao et al. 2023, arXiv:2305.10425: max(0, 1 - beta h), on the ratio to the reference as in
            # Liu et al. 2023, arXiv:2309.06657 ("hinge-norm").
            return jax.nn.relu(1 - beta * h)
        case "apo_zero":
            # D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7: each side on its own, the chosen up, the rejected
            # down: -sigmoid(beta h_w) + sigmoid(beta h_l), h = h_w - h_l. Plus 1, so that it ends at 0.
            return jax.nn.sigmoid(-beta * chosen) + jax.nn.sigmoid(beta * rejected)
        case "simpo":
            # Meng et al. 2024, arXiv:2405.14734, eq. 6: l(beta (mean_w - mean_l) - gamma), smoothed like sigmoid.
            z = beta * h - config.margin
            return (1 - e) * _logistic(z) + e * _logistic(-z)
        case "orpo":
            # Hong et al. 2024, arXiv:2403.07691, eq. 7 times their lambda (eq. 6), which is beta here:
            # l(log [odds(y_w) / odds(y_l)]). The likelihood term of eq. 6 is the SFT term.
            return beta * _logistic(_log_odds(chosen) - _log_odds(rejected))
        case unknown:
            raise ValueError(f"unknown preference loss {unknown!r}")


def _logistic(z: jax.Array) -> jax.Array:
    """-log sigmoid(z)"""
    return jax.nn.softplus(-z)


def _log_odds(logp: jax.Array) -> jax.Array:
    """log [p / (1 - p)] with p = exp(logp).

    A mean log-probability closer to 0 than its rounding error counts as that error, without a gradient.
    """
    logp = jnp.minimum(logp, -jnp.finfo(logp.dtype).eps)
    # 1 - p is exact near p = 1, where it matters. Near p = 0 its error is one rounding of a sum with logp < -0.7.
    return logp - jnp.log(-jnp.expm1(logp))


def sequence_logprobs(forward: ForwardFn, params: Params, batch: Batch) -> jax.Array:
    """log p of [chosen, rejected] of each pair, summed over the target tokens.

    Returns: (B, P, 2) in at least float32; 0 where there is no pair.
    """
    logprobs = token_logprobs(forward(params, batch), output_matrix(params), batch["targets"])  # (B, T)
    return _sum_by_side(logprobs, batch)


def _sum_by_side(values: jax.Array, batch: Batch) -> jax.Array:
    """Sums of values (B, T) over the target tokens of each side, (B, P, 2).

    Compared and summed, not scattered or multiplied: in full precision and in the same order each time, so that a
    run can be continued bit for bit.
    """
    B, P = batch["pair_mask"].shape
    segments = jnp.where(batch["target_mask"], batch["segment_ids"], 0)
    of_side = segments[:, None] == jnp.arange(1, 2 * P + 1)[:, None]  # (B, 2P, T)
    return jnp.sum(jnp.where(of_side, values[:, None], 0), axis=-1).reshape(B, P, 2)


def preference_optimization(config: DpoConfig) -> Objective:
    """Mean loss of the global batch's pairs + sft_weight * mean negative log-likelihood of their chosen tokens.

    Denominators (int32 counts over the global batch): pairs, target_tokens, chosen_tokens. Without pairs, loss and
    gradients are 0.

    Metrics, which micro-batches add up to means over the global batch's pairs:
      rewards/chosen, rewards/rejected: beta * (log p - log p of the reference), sums or means as the loss takes them;
        simpo and orpo have no reference.
      rewards/margins: chosen - rejected. rewards/accuracies: share of pairs with a positive one; a tie counts half,
        so that a policy equal to its reference has 0.5.
      logps/chosen, logps/rejected: log p, nats, summed over an answer's target tokens.
      lengths/chosen, lengths/rejected: target tokens of an answer.
      nll/chosen: the SFT term without its weight, nats per token, also where the weight is 0.
    """

    def loss(forward: ForwardFn, params: Params, batch: Batch, denominators: Denominators) -> tuple[jax.Array, Metrics]:
        pair_mask, n_pairs = batch["pair_mask"], jnp.maximum(denominators["pairs"], 1)

        def mean(values: jax.Array) -> jax.Array:  # over the global batch: this micro-batch's share
            return jnp.sum(jnp.where(pair_mask, values, 0)) / n_pairs

        logps = sequence_logprobs(forward, params, batch)  # (B, P, 2)
        lengths = _sum_by_side(jnp.ones_like(batch["target_mask"], logps.dtype), batch)
        per_side = jnp.maximum(lengths, 1) if _takes_means(config) else 1
        ref_logps = batch["ref_logps"] if config.needs_reference else jnp.zeros_like(logps)
        policy, reference = logps / per_side, ref_logps / per_side
        losses = pair_losses(config, policy[..., 0], policy[..., 1], reference[..., 0], reference[..., 1])

        chosen_nll = -jnp.sum(jnp.where(pair_mask, logps[..., 0], 0)) / jnp.maximum(denominators["chosen_tokens"], 1)
        total = mean(losses)
        if config.sft_weight:
            total += config.sft_weight * chosen_nll

        rewards = config.beta * (policy - reference)
        margins = rewards[..., 0] - rewards[..., 1]
        metrics = {
            "rewards/margins": mean(margins),
            "rewards/accuracies": mean((1 + jnp.sign(margins)) / 2),
            "nll/chosen": chosen_nll,
        }
        for name, values in (("rewards", rewards), ("logps", logps), ("lengths", lengths)):
            metrics |= {f"{name}/chosen": mean(values[..., 0]), f"{name}/rejected": mean(values[..., 1])}
        return total, metrics

    return Objective(_denominators, loss)


def _takes_means(config: DpoConfig) -> bool:
    return config.logp == "mean" or config.loss in _DEFINED_ON_MEANS


def _denominators(batch: Batch) -> Denominators:
    is_target, is_chosen = batch["target_mask"], batch["segment_ids"] % 2 == 1
    return {
        "pairs": jnp.sum(batch["pair_mask"], dtype=jnp.int32),
        "target_tokens": jnp.sum(is_target, dtype=jnp.int32),
        "chosen_tokens": jnp.sum(is_target & is_chosen, dtype=jnp.int32),
    }
