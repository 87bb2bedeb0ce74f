"""The optimiser and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from minimind_jax.config import OptimConfig
from minimind_jax.model import Params

# Moonlight's update RMS (arXiv:2502.16982, eq. 4): what AdamW's is in practice, so that Muon takes AdamW's lr.
_MUON_RMS = 0.2
_MUON_MOMENTUM = 0.95  # Jordan's; optim.b1 and b2 are Adam's
_ADAM_EPS = 1e-8


def make_schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """lr of step t (0-based): linear warm-up to `lr`, then by `optim.schedule`

      constant  `lr`
      cosine    half a cosine from `lr` to `min_lr_ratio * lr` (Loshchilov & Hutter 2017, arXiv:1608.03983)
      wsd       `lr` up to `decay_start`, then to `min_lr_ratio * lr` as 1 - sqrt(progress): warm-up, stable, decay
                (Hu et al. 2024, arXiv:2404.06395) with the decay of Hägele et al. 2024, arXiv:2405.18392

    The first step already learns: warm-up gives lr * (t + 1) / warmup_steps.
    """
    warmup, end = config.warmup_steps, config.min_lr_ratio
    decay_from = decay_start(config, total_steps)

    def schedule(step: jax.Array) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        ramp = jnp.minimum((t + 1) / max(warmup, 1), 1.0)
        if config.schedule == "constant":
            return config.lr * ramp
        progress = jnp.clip((t - decay_from) / max(total_steps - decay_from, 1), 0.0, 1.0)
        left = 0.5 * (1 + jnp.cos(jnp.pi * progress)) if config.schedule == "cosine" else 1 - jnp.sqrt(progress)
        return config.lr * ramp * (end + (1 - end) * left)

    return schedule


def decay_start(config: OptimConfig, total_steps: int) -> int:
    """The step (0-based) from which lr falls; `total_steps` where it never does."""
    if config.schedule == "constant":
        return total_steps
    if config.schedule == "cosine":
        return config.warmup_steps
    return total_steps - math.ceil(config.decay_ratio * total_steps)


def stable_end(config: OptimConfig, total_steps: int) -> int | None:
    """The step of `wsd` whose checkpoint a longer run can go on from as if it had been longer all along; else None."""
    return decay_start(config, total_steps) if config.schedule == "wsd" else None


def decayed(params: Params) -> Params:
    """Which parameters weight decay touches: matrices, not the norms' scales.

    Layers are stacked along a leading axis, so a block's scale is (L, D): told by name, not by rank.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: not path[-1].key.endswith("norm"), params)


def orthogonalised(params: Params) -> Params:
    """Which parameters `optim.name=muon` hands to Muon: the blocks' matrices. Embedding, head and scales stay AdamW's.

    Inputs and outputs of the network are vectors per token, not maps between hidden spaces (Jordan et al. 2024).
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, is_matrix: is_matrix and path[0].key == "blocks", decayed(params)
    )


Place = Callable[[jax.Array], jax.Array]  # says where on the mesh an array lies


def make_optimizer(config: OptimConfig, by_layer: Place = lambda x: x) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), or Muon for the blocks' matrices beside it, up to lr.

    The train step scales the result by -lr, so that lr depends on the step alone, not on how many
    updates were skipped.

    Args:
      by_layer: places stacked matrices (L, in, out) so that a device has whole ones (`Layout.by_layer`): Muon
        multiplies each with itself, over and over.
    """
    clip = optax.clip_by_global_norm(config.grad_clip) if config.grad_clip else optax.identity()
    direction = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=_ADAM_EPS)
    if config.name == "muon":
        labels = lambda params: jax.tree.map(lambda is_muons: "muon" if is_muons else "adam", orthogonalised(params))  # noqa: E731
        direction = optax.partition({"muon": _scale_by_muon(by_layer), "adam": direction}, labels)
    return optax.chain(clip, direction, optax.add_decayed_weights(config.weight_decay, mask=decayed))


def _scale_by_muon(by_layer: Place) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised per layer (Jordan et al. 2024, github.com/KellerJordan/Muon).

    Leaves are (..., in, out): all axes but the last two are separate matrices.
    """

    def to_rms(update: jax.Array) -> jax.Array:
        return by_layer(update * (_MUON_RMS * math.sqrt(max(update.shape[-2:]))))

    # Not optax.contrib.muon: its other half is AdamW with Nesterov momentum, and it wants lr.
    axes = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    muon = optax.contrib.scale_by_muon(
        beta=_MUON_MOMENTUM, weight_dimension_numbers=lambda updates: jax.tree.map(lambda _: axes, updates)
    )
    placed = optax.GradientTransformation(
        muon.init, lambda updates, *state: muon.update(jax.tree.map(by_layer, updates), *state)
    )
    return optax.chain(placed, optax.stateless(lambda updates, _: jax.tree.map(to_rms, updates)))
