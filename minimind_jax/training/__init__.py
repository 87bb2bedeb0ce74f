"""The training loop: one for every stage."""

from minimind_jax.training.run import run

__all__ = ["run"]
