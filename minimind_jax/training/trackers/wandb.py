"""Weights & Biases. Without a network: WANDB_MODE=offline, later `wandb sync WORKDIR/wandb/offline-run-*`."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping

import wandb

from minimind_jax.errors import UserError
from minimind_jax.training.trackers import PROJECT, TrackedRun

_FINISH_TIMEOUT_S = 300.0  # without a network, wandb would go on trying to upload for hours


def check() -> None:
    """Raises UserError where `wandb.init` would ask for an API key."""
    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
        raise UserError(
            "log_to names wandb, which is not logged in: say `wandb login`, set WANDB_API_KEY, or work offline with "
            "WANDB_MODE=offline"
        )


def start(run: TrackedRun) -> Wandb:
    return Wandb(run)


class Wandb:
    """Rows {step, ...} with `step` as everything's axis: wandb's own step counts calls and drops what comes late."""

    def __init__(self, run: TrackedRun):
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", run.name),
            id=run.run_id,
            resume="allow",
            dir=str(run.directory.parent),  # to which wandb adds its own name
            config=run.config,
            allow_val_change=True,  # a continued run may have more steps, say
            settings=wandb.Settings(finish_timeout=_FINISH_TIMEOUT_S, finish_timeout_raises=True),
        )
        self._run.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({"step": step, **values})

    def text(self, tag: str, text: str, step: int) -> None:
        self._run.log({"step": step, tag: wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False)})

    def close(self) -> None:
        self._run.finish()
