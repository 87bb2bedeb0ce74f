"""What a recipe will cost, before it starts: `python -m minimind_jax.plan`.

Nothing is imported here: the command keeps JAX off the accelerators before JAX is imported.
"""
