"""The optimiser and the learning-rate schedule."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from minimind_jax.config import OptimConfig
from minimind_jax.model import Params


def make_schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """lr of step t (0-based): linear warm-up to `lr`, then constant or a cosine to `min_lr_ratio * lr`.

    The first step already learns: warm-up gives lr * (t + 1) / warmup_steps.
    """
    warmup, end = config.warmup_steps, config.min_lr_ratio

    def schedule(step: jax.Array) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        ramp = jnp.minimum((t + 1) / max(warmup, 1), 1.0)
        if config.schedule == "constant":
            return config.lr * ramp
        progress = jnp.clip((t - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
        cosine = end + (1 - end) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return config.lr * ramp * cosine

    return schedule


def decayed(params: Params) -> Params:
    """Which parameters weight decay touches: matrices, not the norms' scales.

    Layers are stacked along a leading axis, so a block's scale is (L, D): told by name, not by rank.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: not path[-1].key.endswith("norm"), params)


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) up to the learning rate.

    The train step scales the result by -lr, so that lr depends on the step alone, not on how many
    updates were skipped.
    """
    clip = optax.clip_by_global_norm(config.grad_clip) if config.grad_clip else optax.identity()
    return optax.chain(
        clip,
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=1e-8),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    )
