"""The terminal: a progress bar where somebody looks, plain lines where a log file does."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY_S = 10.0  # in a log file, a line for every step would drown the rest


class TrainingConsole:
    """Also usable as a context manager: it then shows the progress bar."""

    def __init__(self, total_steps: int, start_step: int, quiet: bool = False):
        self._console = Console(highlight=False, quiet=quiet, soft_wrap=True)
        self._interactive = sys.stdout.isatty()
        self._total, self._start = total_steps, start_step
        self._began, self._last_line = time.monotonic(), 0.0
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        self._progress = Progress(*columns, console=self._console, disable=not self._interactive or quiet)
        self._task = self._progress.add_task("train", total=total_steps, completed=start_step, numbers="")

    def __enter__(self) -> TrainingConsole:
        self._progress.start()
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def say(self, text: str = "", style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False)

    def show(self, renderable: Any) -> None:
        self._console.print(renderable)

    def step(self, line: dict[str, Any]) -> None:
        """Shows one logged step's numbers."""
        step = line["step"]
        numbers = (
            f"loss {_number(line['loss'], '.4f')}  lr {line['lr']:.2e}  |g| {_number(line['grad_norm'], '.2f')}  "
            f"{line['tokens_per_s']:,.0f} tok/s  mfu {line['mfu']:.1%}  wait {line['data_wait']:.0%}"
        )
        self._progress.update(self._task, completed=step, numbers=numbers)
        now = time.monotonic()
        if not self._interactive and (now - self._last_line >= _LINE_EVERY_S or step == self._total):
            self._last_line = now
            per_step = (now - self._began) / max(step - self._start, 1)
            eta = time.strftime("%H:%M:%S", time.gmtime(per_step * (self._total - step)))
            self.say(f"step {step}/{self._total}  {numbers}  eta {eta}")


def _number(value: float | None, spec: str) -> str:
    return "not finite" if value is None else format(value, spec)
