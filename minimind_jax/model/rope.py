"""Rotary position embeddings in Hugging Face's half-split layout, with YaRN scaling.

Su et al. 2021 (arXiv:2104.09864); YaRN: Peng et al. 2023 (arXiv:2309.00071), in the form of
transformers' `_compute_yarn_parameters`, so that an exported config gives the same angles.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from minimind_jax.config import ModelConfig

# YaRN's ramp: dimensions that turn more than 32 times within the original length keep their
# frequency, those that turn less than once are interpolated (paper, section 3.2).
_BETA_FAST, _BETA_SLOW = 32.0, 1.0


def inverse_frequencies(config: ModelConfig) -> tuple[np.ndarray, float]:
    """Angle per position of each rotated pair, float64 (head_dim / 2,), and the scale of cos and sin."""
    half = config.head_dim // 2
    inv_freq = config.rope_theta ** -(np.arange(half) / half)
    scaling = config.rope_scaling
    if scaling.type == "none":
        return inv_freq, 1.0

    def pair_that_turns(rotations: float) -> float:
        wavelength = scaling.original_max_seq_len / (rotations * 2 * math.pi)
        return config.head_dim * math.log(wavelength) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair_that_turns(_BETA_FAST)), 0)
    high = min(math.ceil(pair_that_turns(_BETA_SLOW)), config.head_dim - 1)
    ramp = np.clip((np.arange(half) - low) / ((high - low) or 1e-3), 0, 1)  # 0 = keep, 1 = interpolate
    scale = 1.0 if scaling.factor <= 1 else 0.1 * math.log(scaling.factor) + 1.0
    return inv_freq * (1 - ramp) + inv_freq / scaling.factor * ramp, scale


def rope_tables(config: ModelConfig, positions: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """cos and sin for `positions` (B, T): each (B, T, 1, head_dim / 2), computed in at least float32."""
    inv_freq, scale = inverse_frequencies(config)
    angle_dtype = jnp.promote_types(dtype, jnp.float32)
    angles = positions[..., None, None].astype(angle_dtype) * jnp.asarray(inv_freq, angle_dtype)  # (B, T, 1, h/2)
    return (jnp.cos(angles) * scale).astype(dtype), (jnp.sin(angles) * scale).astype(dtype)


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates pairs (i, i + head_dim / 2) of `x` (B, T, H, head_dim)."""
    x1, x2 = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
