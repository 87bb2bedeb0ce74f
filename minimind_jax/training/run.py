"""From a recipe to a finished run: checks everything, builds the parts, hands them to the loop."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax

from minimind_jax import workdir as workdirs
from minimind_jax.config import Config, from_recipe
from minimind_jax.data import open_rows
from minimind_jax.data.rows import count_rows
from minimind_jax.errors import UserError
from minimind_jax.long_context import trained_length
from minimind_jax.model import pick_attention
from minimind_jax.objectives import Objective, language_modelling, preference_optimization
from minimind_jax.tokenizer import Tokenizer, load_tokenizer
from minimind_jax.training import environment
from minimind_jax.training.identity import check_same_run, identity, locked
from minimind_jax.training.job import Job, check_memory_error
from minimind_jax.training.loop import train
from minimind_jax.training.mesh import check_divisible, make_mesh
from minimind_jax.training.reference import attach_reference
from minimind_jax.training.step import compute_dtype
from minimind_jax.training.trackers import check_trackers
from minimind_jax.workdir import TRAINED_KEY, Workdir


def run(recipe: Mapping[str, Any], user_set: Collection[str] = ()) -> None:
    """Trains one recipe to its end, or continues its workdir.

    Args:
      recipe: the ConfigDict of a `configs/*.py`, overrides applied.
      user_set: dotted keys that the user set by hand; only matters with `init_from`.

    Raises UserError for whatever the user can mend, before anything is written.
    """
    # A run that has begun is complete in itself: its init_from may be gone by the time it is continued.
    workdir = Workdir(Path(recipe.get("workdir") or ""))
    begun = bool(recipe.get("workdir")) and bool(workdir.steps())
    source = str(workdir.path) if begun else recipe["init_from"]
    config = from_recipe(recipe, user_set, workdirs.model_config(source) if recipe["init_from"] else None)
    environment.prepare(config)
    if jax.process_index() == 0:  # the one that writes
        check_trackers(config.trackers)
    mesh = make_mesh(config.mesh)
    check_divisible(config, mesh)
    pick_attention(config.attention, config.model, compute_dtype(config), packed=True)  # raises where it cannot be
    tokenizer = open_tokenizer(config, source)
    rows, val_rows = open_rows(config, tokenizer)
    total_rows = count_rows(config.epochs, rows.rows_per_epoch)
    total_steps = config.steps or math.ceil(total_rows / config.batch_size)

    own_identity = identity(config, rows.fingerprint, tokenizer.fingerprint)
    check_same_run(workdir, own_identity)  # before the lock creates anything
    if config.init_from and not begun:
        workdirs.load_model(config.init_from)  # weights that cannot be read stop the run here
    with locked(workdir):
        before = check_same_run(workdir, own_identity)
        job = Job(
            config=config,
            mesh=mesh,
            rows=rows,
            val_rows=val_rows,
            objective=make_objective(config),
            tokenizer=tokenizer,
            workdir=workdir,
            total_steps=total_steps,
            total_rows=None if config.steps else total_rows,
            total_steps_before=before["total_steps"] if before else total_steps,
        )
        done = max(workdir.steps(), default=0)
        if jax.process_index() == 0 and done < total_steps:
            # config.json comes first: it tells the same command, after a kill, that the rest is its own.
            trained = trained_length(source) if config.init_from else 0
            notes = {
                "total_steps": total_steps,
                TRAINED_KEY: None if trained is None else max(trained, config.data.max_seq_len),
                "identity": own_identity,
            }
            workdir.write_config(config.to_dict() | notes)
            if not done:
                tokenizer.save(workdir.tokenizer)
        try:
            if config.dpo and config.dpo.needs_reference and done < total_steps:
                attach_reference(job, begun)
            train(job)
        except jax.errors.JaxRuntimeError as e:
            raise check_memory_error(e) from e


def open_tokenizer(config: Config, source: str) -> Tokenizer:
    """The run's tokenizer: `tokenizer`, else with `init_from` that of `source`, else the shipped one.

    Raises UserError if its vocabulary does not fit the model's.
    """
    path = config.tokenizer or (str(workdirs.tokenizer_directory(source)) if config.init_from else "")
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"tokenizer {tokenizer.path} has {tokenizer.vocab_size} entries, more than model.vocab_size="
            f"{config.model.vocab_size}: set --config.model.vocab_size={tokenizer.vocab_size} (or a larger multiple "
            "of 128), or take the tokenizer that belongs to the model"
        )
    return tokenizer


def make_objective(config: Config) -> Objective:
    """What the stage minimises. A stage is data (`open_rows`) + objective."""
    return preference_optimization(config.dpo) if config.dpo else language_modelling
