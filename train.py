"""Trains one stage: python train.py --config configs/pretrain.py [--config.KEY=VALUE ...]

The recipe's docstring states its command, cost and expected result; docs/config.md lists every key.
`--config configs/pretrain.py:tiny,smoke` passes an argument: a model preset, or `smoke` for a
one-minute run on a CPU. Running the same command again continues the workdir where it stopped.
"""

import sys

from minimind_jax.errors import user_errors
from minimind_jax.recipe import load_recipe


def main() -> None:
    if len(sys.argv) == 1 or "--help" in sys.argv or "-h" in sys.argv:
        print(__doc__)
        return
    with user_errors():
        recipe, user_set = load_recipe(sys.argv)
        from minimind_jax.training import run  # after the recipe is known to be good: importing JAX takes seconds

        run(recipe, user_set)


if __name__ == "__main__":
    main()
