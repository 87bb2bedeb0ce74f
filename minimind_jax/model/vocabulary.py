"""Another vocabulary for trained parameters."""

from __future__ import annotations

import numpy as np

from minimind_jax.model.transformer import Params


def resize_vocabulary(params: Params, rows: np.ndarray, known: np.ndarray) -> Params:
    """Numpy parameters whose embedding and, where it is not tied, output head have other rows; the rest is shared.

    Args:
      rows: (V,) for each row of the result the old row that it keeps, -1 for one that begins at the mean.
      known: (K,) old rows that the mean is taken over: those that stand for a token, not the padding.
    """

    def resized(matrix: np.ndarray) -> np.ndarray:  # (V_old, D) -> (V, D)
        mean = matrix[known].mean(axis=0, dtype=np.float64).astype(matrix.dtype)
        return np.where(rows[:, None] >= 0, matrix[rows], mean)

    changed = {"embed": resized(params["embed"])}
    if "lm_head" in params:
        changed["lm_head"] = np.ascontiguousarray(resized(params["lm_head"].T).T)
    return params | changed
