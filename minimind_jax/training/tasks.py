"""Evaluation tasks during training: what the live parameters do on `eval_tasks`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax

from minimind_jax.config import Config
from minimind_jax.errors import UserError
from minimind_jax.evaluation.task import Task, TaskOptions
from minimind_jax.evaluation.tasks import open_tasks
from minimind_jax.model import Params
from minimind_jax.training import processes
from minimind_jax.training.console import TrainingConsole
from minimind_jax.training.job import Job
from minimind_jax.training.mesh import whole_on_one_device
from minimind_jax.workdir import LoadedModel


def open_eval_tasks(config: Config) -> Sequence[Task]:
    """The tasks that `eval_tasks` names, their files read. Raises UserError for a name or file that is none."""
    options = TaskOptions(limit=config.eval_tasks_limit or None)
    try:
        return open_tasks(config.eval_task_specs, options) if config.eval_task_specs else ()
    except UserError as e:
        raise UserError(f"eval_tasks={config.eval_tasks}: {e}") from None


def run_tasks(job: Job, params: Params, step: int, console: TrainingConsole) -> dict[str, float]:
    """`task/NAME` and its standard error `task/NAME_stderr`, for each of the tasks that can be scored.

    In process 0, however the parameters are sharded. Called by all processes; all return the same.
    """
    if not job.config.eval_task_specs:
        return {}
    whole = whole_on_one_device(job.mesh, params)
    return processes.from_first(lambda: _run_here(job, jax.device_get(whole), step, console))


def _run_here(job: Job, params: Params, step: int, console: TrainingConsole) -> dict[str, float]:
    model = LoadedModel(job.config.model, params, job.tokenizer, step, job.workdir.path)
    values: dict[str, float] = {}
    for task in job.tasks:
        try:
            result = task.run(model)
        except UserError as e:  # such as weights that are not finite: the run itself goes on, or says so
            console.say(f"warning: task {task.name} gives no score at step {step}: {e}", style="yellow")
            continue
        for name, value in (("", result.mean()), ("_stderr", result.stderr())):
            if math.isfinite(value):
                values[f"task/{task.name}{name}"] = value
    return values
