"""From a recipe to a finished run: checks everything, builds the parts, hands them to the loop."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax

from minimind_jax import workdir as workdirs
from minimind_jax.config import Config, distributed_from_recipe, from_recipe, token_cache
from minimind_jax.data import open_rows
from minimind_jax.data.rows import count_rows
from minimind_jax.errors import UserError
from minimind_jax.long_context import trained_length
from minimind_jax.model import pick_attention
from minimind_jax.objectives import Objective, language_modelling, preference_optimization
from minimind_jax.tokenizer import Tokenizer, load_tokenizer
from minimind_jax.training import environment, processes
from minimind_jax.training.best import check_best
from minimind_jax.training.checkpoint import newest_readable
from minimind_jax.training.identity import check_same_run, flatten, identity, locked
from minimind_jax.training.job import Job, check_memory_error
from minimind_jax.training.loop import train
from minimind_jax.training.mesh import check_divisible, make_mesh
from minimind_jax.training.reference import attach_reference, digest
from minimind_jax.training.step import compute_dtype
from minimind_jax.training.tasks import open_eval_tasks
from minimind_jax.training.trackers import check_trackers
from minimind_jax.training.vocabulary import fit_vocabulary, load_initial
from minimind_jax.workdir import TRAINED_KEY, Workdir, read_metrics


def run(recipe: Mapping[str, Any], user_set: Collection[str] = ()) -> None:
    """Trains one recipe to its end, or continues its workdir.

    Args:
      recipe: the ConfigDict of a `configs/*.py`, overrides applied.
      user_set: dotted keys that the user set by hand; only matters with `init_from`.

    Raises UserError for whatever the user can mend, before anything is written.
    """
    with processes.joined(distributed_from_recipe(recipe)):
        _run(recipe, user_set)


def _run(recipe: Mapping[str, Any], user_set: Collection[str]) -> None:
    # A run that has begun is complete in itself: its init_from may be gone by the time it is continued.
    workdir = Workdir(Path(recipe.get("workdir") or ""))
    begun = bool(recipe.get("workdir")) and processes.from_first(lambda: bool(workdir.steps()))
    source = str(workdir.path) if begun else recipe["init_from"]
    config = from_recipe(recipe, user_set, workdirs.model_config(source) if recipe["init_from"] else None)
    processes.check_same(_decisive(config))
    environment.prepare(config)
    if processes.first():  # the one that writes
        check_trackers(config.trackers)
    tasks = open_eval_tasks(config) if processes.first() else ()
    mesh = make_mesh(config.mesh)
    check_divisible(config, mesh)
    # Raises where it cannot be. Processes on unlike cards must not build different programs.
    attention = pick_attention(config.attention, config.model, compute_dtype(config), packed=True)
    processes.check_same({"attention": attention.name})
    # One that logged steps and saved none has a tokenizer too, and must be the same run.
    has_tokenizer = begun or processes.from_first(lambda: bool(read_metrics(workdir)))
    tokenizer, note = open_tokenizer(config, workdir if has_tokenizer else None), ""
    if config.init_from and not begun:
        config, note = fit_vocabulary(config, tokenizer, recipe, user_set)
    check_room(tokenizer, config)
    with processes.first_alone(token_cache(config.data.cache_dir)):
        rows, val_rows = open_rows(config, tokenizer)
    check_best(config, val_rows is not None)
    total_rows = count_rows(config.epochs, rows.rows_per_epoch)
    total_steps = config.steps or math.ceil(total_rows / config.batch_size)

    own_identity = identity(config, rows.fingerprint, tokenizer.fingerprint)
    processes.check_same(own_identity)
    processes.from_first(lambda: check_same_run(workdir, own_identity))  # before the lock creates anything
    if config.init_from and not begun:
        _check_weights(config, tokenizer)
    with locked(workdir):
        before = processes.from_first(lambda: check_same_run(workdir, own_identity))
        if not processes.share(workdir.path):
            raise UserError(
                f"workdir {workdir.path} is not the same directory for all processes: put it on a file system that "
                "they share, the checkpoints are written by all of them"
            )
        done = processes.from_first(lambda: newest_readable(workdir))
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
            note=note,
            tasks=tasks,
        )
        if processes.first() and done < total_steps:
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


def _check_weights(config: Config, tokenizer: Tokenizer) -> None:
    """Raises UserError where they cannot be read, or are not the same for all processes; and lets go of them."""
    weights = load_initial(config, tokenizer)
    if processes.count() > 1:
        processes.check_same({"init_from.weights": digest(weights)})


def _decisive(config: Config) -> dict[str, Any]:
    """What all processes must be started with alike: everything but where each finds its data and keeps its cache."""
    own = ("distributed.", "data.path", "data.val_path", "data.cache_dir", "data.num_workers")
    recipe = {key: value for key, value in flatten(config.to_dict()) if not key.startswith(own)}
    cache = {environment.CACHE_VARIABLE: os.environ.get(environment.CACHE_VARIABLE)}
    return recipe | cache | {"jax": jax.__version__}


def open_tokenizer(config: Config, own: Workdir | None) -> Tokenizer:
    """The run's tokenizer: `tokenizer`, else that of its own workdir, else that of `init_from`, else the shipped one.

    Args:
      own: None for a run that has not begun.
    """
    if not config.tokenizer and own:
        return load_tokenizer(str(own.tokenizer))
    source = str(workdirs.tokenizer_directory(config.init_from)) if config.init_from else ""
    return load_tokenizer(config.tokenizer or source)


def check_room(tokenizer: Tokenizer, config: Config) -> None:
    """Raises UserError if the model has fewer rows than the tokenizer entries."""
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"tokenizer {tokenizer.path} has {tokenizer.vocab_size} entries, more than model.vocab_size="
            f"{config.model.vocab_size}: set --config.model.vocab_size={tokenizer.vocab_size} (or a larger multiple "
            "of 128), or take the tokenizer that belongs to the model"
        )


def make_objective(config: Config) -> Objective:
    """What the stage minimises. A stage is data (`open_rows`) + objective."""
    return preference_optimization(config.dpo) if config.dpo else language_modelling
