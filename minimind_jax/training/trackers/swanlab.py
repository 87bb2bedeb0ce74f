"""SwanLab. Without a network: SWANLAB_MODE=offline, later `swanlab sync WORKDIR/swanlab/run-*`.

SWANLAB_MODE=local keeps everything here for `swanlab watch WORKDIR/swanlab`.
"""

from __future__ import annotations

import importlib.util
import signal
import threading
from collections.abc import Mapping

import swanlab

from minimind_jax.errors import UserError
from minimind_jax.training.trackers import PROJECT, TrackedRun


def check() -> None:
    """Raises UserError where `swanlab.init` would ask for an API key, or lacks the package of its local mode."""
    settings = swanlab.Settings()
    if settings.mode == "online" and not settings.api_key:
        raise UserError(
            "log_to names swanlab, which is not logged in: say `swanlab login`, set SWANLAB_API_KEY, or work offline "
            "with SWANLAB_MODE=offline"
        )
    if settings.mode == "local" and not importlib.util.find_spec("swanboard"):
        raise UserError("SWANLAB_MODE=local needs the package swanboard: pip install 'swanlab[dashboard]'")


def start(run: TrackedRun) -> SwanLab:
    return SwanLab(run)


class SwanLab:
    """One experiment. A resumed one is continued online; offline, each process writes a directory with the same id."""

    def __init__(self, run: TrackedRun):
        interrupt = signal.getsignal(signal.SIGINT)
        settings = swanlab.Settings(interactive=False)
        self._run = swanlab.init(
            project=settings.project.name or PROJECT,
            name=settings.experiment.name or run.name,
            id=run.run_id,
            resume="allow",
            log_dir=str(run.directory),
            config=run.config,
            settings=settings,
        )
        # Its handler would end the experiment at Ctrl-C; ours goes on to save a checkpoint.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def text(self, tag: str, text: str, step: int) -> None:
        self._run.log({tag: swanlab.Text(text)}, step=step)

    def close(self) -> None:
        self._run.finish()
