"""The loop that every stage runs: feed, step, log, evaluate, save.

The host never waits for the step it has just dispatched: it reads the numbers of the step before.
Only evaluation, saving and the end of the run wait for the device.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from minimind_jax.model import Params
from minimind_jax.training import processes
from minimind_jax.training.best import BestSoFar, best_metric
from minimind_jax.training.checkpoint import Checkpointer
from minimind_jax.training.console import TrainingConsole
from minimind_jax.training.feed import Feed
from minimind_jax.training.flops import flops_per_token, peak_flops
from minimind_jax.training.job import Job, compile_train_step, initial_state, make_batch, make_validation
from minimind_jax.training.messages import announce, announce_resume, closing_summary, shown
from minimind_jax.training.metrics import MetricsLog
from minimind_jax.training.optimizer import stable_end
from minimind_jax.training.report import StepReport
from minimind_jax.training.samples import answer_statistics, show_samples
from minimind_jax.training.tasks import run_tasks
from minimind_jax.training.trackers import open_trackers
from minimind_jax.workdir import read_metrics


def train(job: Job) -> None:
    """Trains up to `job.total_steps`, from the workdir's last checkpoint if it has one."""
    # Closed even when the run fails: a save under way is finished, not torn off. Until then signals are held off.
    with _stop_signal() as stop, _open_checkpoints(job) as checkpointer:
        _train(job, checkpointer, stop)


def _train(job: Job, checkpointer: Checkpointer, stop: processes.Stop) -> None:
    config = job.config
    start = processes.from_first(lambda: checkpointer.latest_step() or 0)
    stop.start(start)
    console = TrainingConsole(job.total_steps, start, quiet=not processes.first())
    announce(console, job)
    if start >= job.total_steps:
        console.say(
            f"{job.workdir.path} already stands at step {start} of {job.total_steps}: nothing to do "
            "(raise steps or epochs to train on)"
        )
        return
    state, meta = initial_state(job, checkpointer, start)
    if start:
        announce_resume(console, job, start)
    metrics = _open_metrics(job, start, console) if processes.first() else None
    train_step = compile_train_step(job, state, console)
    processes.barrier()  # compiling takes one longer than another, and collectives do not wait for ever
    evaluate = _make_evaluation(job, console)
    best = BestSoFar(best_metric(config, job.val_rows is not None), _lines_so_far(job, start))
    if config.keep_best and best.best:
        checkpointer.keep_step(best.best.step)
    if evaluate and start == 0:
        meta["before"] = evaluate(state["params"], 0) | answer_statistics(job, state["params"])
        console.say(f"before training: {shown(meta['before'])}")
    if metrics and "before" in meta:
        metrics.write_before(meta["before"])

    seq_len, peak = job.rows.seq_len, peak_flops()[0] * job.mesh.size
    report = StepReport(console, config.batch_size, seq_len, flops_per_token(config.model, seq_len), peak)
    last_line: dict[str, Any] = {}

    def log(step: int, numbers: dict[str, jax.Array], validation: dict[str, float]) -> None:
        """Waits for a dispatched step's numbers; writes their line if it is due."""
        nonlocal last_line
        values = report.step(step, numbers)
        due = config.log_every and step % config.log_every == 0
        if due or validation or step == job.total_steps:
            last_line = report.line(step, values, validation)
            if metrics:
                metrics.write(last_line)
            console.step(last_line)

    stable = stable_end(config.optim, job.total_steps)
    step, before_last = start, None  # before_last: the step before, dispatched but not yet read
    began = time.time()
    with Feed(lambda s: make_batch(job, s), start, job.total_steps) as feed, console:
        for batch in report.timing_waits(feed):
            state, numbers = train_step(state, batch)
            step += 1
            if before_last:
                log(*before_last, {})
            before_last = (step, numbers)
            finished = stop.after(step) or step == job.total_steps
            evaluates = evaluate and (step % config.eval_every == 0 or step == job.total_steps)
            saves = finished or step == stable or (config.save_every and step % config.save_every == 0)
            if evaluates or saves:
                jax.block_until_ready(state)
                with report.paused():
                    validation = evaluate(state["params"], step) if evaluate and evaluates else {}
                    if validation and step == job.total_steps:
                        validation |= answer_statistics(job, state["params"])
                is_best = best.update(step, validation)
                if is_best and config.keep_best:
                    checkpointer.keep_step(step)
                    saves = True
                log(step, numbers, validation | ({"best": True} if is_best else {}))
                before_last = None
                with report.paused():
                    if evaluates:
                        console.say(f"step {step}: {shown(validation)}{' (best so far)' if is_best else ''}")
                        show_samples(job, state["params"], step, console, metrics)
                    if saves:
                        if metrics:
                            metrics.sync()  # lines up to this step are on disk before its checkpoint is
                        checkpointer.save(state, step, meta)
            if finished:
                break
    checkpointer.wait()  # for the last save
    if metrics:
        metrics.close()
    if step < job.total_steps:
        console.say(f"stopped by a signal; step {step} is saved: the same command continues from there")
    else:
        closing_summary(console, job, meta.get("before", {}), last_line, time.time() - began, step - start, best.best)


def _make_evaluation(job: Job, console: TrainingConsole) -> Callable[[Params, int], dict[str, float]] | None:
    """Validation and tasks of the parameters after a step; None where nothing is evaluated."""
    validate = make_validation(job)
    if not validate and not (job.config.eval_every and job.config.eval_task_specs):
        return None

    def evaluate(params: Params, step: int) -> dict[str, float]:
        validation = validate(params) if validate else {}
        return validation | run_tasks(job, params, step, console)

    return evaluate


def _lines_so_far(job: Job, start: int) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl up to the step that training goes on from, in all processes."""
    return processes.from_first(lambda: [line for line in read_metrics(job.workdir) if line["step"] <= start])


def _open_checkpoints(job: Job) -> Checkpointer:
    return Checkpointer(job.workdir, job.config.keep, landmark=stable_end(job.config.optim, job.total_steps))


def _open_metrics(job: Job, start: int, console: TrainingConsole) -> MetricsLog:
    config = job.config
    warn = functools.partial(console.say, style="yellow")
    return MetricsLog(job.workdir, start, open_trackers(config.trackers, job.workdir, start, config.to_dict(), warn))


@contextlib.contextmanager
def _stop_signal() -> Iterator[processes.Stop]:
    """A stop that SIGTERM and the first SIGINT request; a second SIGINT interrupts at once."""
    stop, previous = processes.Stop(), {}

    def handler(number: int, _: Any) -> None:
        stop.request()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is threading.main_thread():
        previous = {n: signal.signal(n, handler) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
