"""What a run says at its start, when it resumes, and at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from rich.table import Table

from minimind_jax.data.open import DOCUMENTS_OF_STAGE
from minimind_jax.long_context import trained_length, untrained_original_warning
from minimind_jax.model import count_params, pick_attention
from minimind_jax.training.best import Best
from minimind_jax.training.console import TrainingConsole
from minimind_jax.training.flops import flops_per_token, peak_flops
from minimind_jax.training.job import Job
from minimind_jax.training.optimizer import decay_start, make_schedule, stable_end
from minimind_jax.training.step import compute_dtype


def announce(console: TrainingConsole, job: Job) -> None:
    c, mesh = job.config, job.mesh
    peak, source = peak_flops()
    flops = flops_per_token(c.model, job.rows.seq_len)
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.default_backend()})"
    epochs = job.total_steps * c.batch_size / job.rows.rows_per_epoch
    if c.steps and c.epochs:
        console.say(f"steps={c.steps} wins over epochs={c.epochs:g}")
    console.say(f"stage      {c.stage} -> {job.workdir.path}")
    console.say(
        f"devices    {devices}, {jax.process_count()} process(es), mesh data={mesh.shape['data']} "
        f"fsdp={mesh.shape['fsdp']}"
    )
    attention = pick_attention(c.attention, c.model, compute_dtype(c), packed=True)
    console.say(f"precision  compute {compute_dtype(c).name}, params {c.precision.params_dtype}; remat {c.remat}")
    console.say(f"attention  {attention.name} ({attention.why})")
    console.say(
        f"model      {c.model.dim} x {c.model.n_layers}, {count_params(c.model) / 1e6:.1f} M parameters, "
        f"vocabulary {c.model.vocab_size}"
    )
    if job.note:
        console.say(f"tokenizer  {job.note}")
    real = job.rows.n_tokens / (job.rows.rows_per_epoch * job.rows.seq_len)
    console.say(
        f"data       {job.rows.n_docs:,} {DOCUMENTS_OF_STAGE[c.stage]} in {job.rows.rows_per_epoch:,} rows of "
        f"{job.rows.seq_len} tokens an epoch, {real:.1%} of them real; "
        f"{job.total_steps:,} steps of {c.batch_size} rows = {epochs:.2f} epochs, "
        f"{job.total_steps * c.batch_size * job.rows.seq_len / 1e6:,.1f} M tokens"
    )
    if c.optim.warmup_steps >= job.total_steps:
        console.say(
            f"warning: optim.warmup_steps={c.optim.warmup_steps} is not reached in {job.total_steps} steps",
            style="yellow",
        )
    elif c.optim.warmup_steps > decay_start(c.optim, job.total_steps):
        console.say(
            f"warning: the decay of optim.decay_ratio={c.optim.decay_ratio:g} begins at step "
            f"{decay_start(c.optim, job.total_steps)} of {job.total_steps}, within the "
            f"optim.warmup_steps={c.optim.warmup_steps}: lr does not reach {c.optim.lr:g}",
            style="yellow",
        )
    trained = trained_length(c.init_from) if c.init_from else c.data.max_seq_len
    if warning := untrained_original_warning(c.model, trained):
        console.say(f"warning: {warning}", style="yellow")
    console.say(
        f"flops      {flops / 1e6:,.0f} MFLOP a token (6N + 12LDT); peak {peak / 1e12:.3g} TFLOP/s a device ({source})"
    )


def announce_resume(console: TrainingConsole, job: Job, start: int) -> None:
    console.say(f"resumed from step {start}")
    before, now, optim = job.total_steps_before, job.total_steps, job.config.optim
    if before == now:
        return
    old, new = (float(make_schedule(optim, n)(jnp.asarray(start))) for n in (before, now))
    change = f"goes from {old:.3g} to {new:.3g}" if old != new else f"stays {new:.3g}"
    console.say(
        f"the run now ends at step {now} instead of {before}: the {optim.schedule} schedule is "
        f"computed for that length, so lr at step {start} {change}"
    )
    stable = stable_end(optim, before)
    if stable in job.workdir.steps() and start > stable:
        console.say(
            f"warning: step {start} lies in the decay that began at step {stable}: to go on from the stable part, "
            f"stop and remove all of {job.workdir.checkpoints} after step {stable}, whose checkpoint was kept",
            style="yellow",
        )


_COMPARED = {
    "val_loss": "held-out loss",
    "val_bpb": "held-out bits per byte",
    "val_rewards/accuracies": "held-out reward accuracy",
    "val_rewards/margins": "held-out reward margin",
    "val_nll/chosen": "held-out SFT loss on chosen answers",
    "answers/repetition": "repeated 4-grams in sampled answers",
    "answers/length": "tokens of sampled answers",
    "answers/unfinished": "sampled answers cut at 128 tokens",
}


def shown(validation: dict[str, float]) -> str:
    return ", ".join(f"{name} {_measured(validation, key)}" for key, name in _compared(validation).items())


def _compared(values: Mapping[str, Any]) -> dict[str, str]:
    """Key -> name of the values that are shown: the known ones, then the tasks."""
    tasks = {key: key.removeprefix("task/") for key in values if is_task_score(key)}
    return {key: name for key, name in _COMPARED.items() if key in values} | tasks


def is_task_score(key: str) -> bool:
    """Whether a key of metrics.jsonl is a task's score, not its standard error."""
    return key.startswith("task/") and not key.endswith("_stderr")


def _measured(values: Mapping[str, Any], key: str) -> str:
    error = values.get(f"{key}_stderr")
    return _number(values[key]) + ("" if error is None else f" ± {error:.4f}")


def closing_summary(
    console: TrainingConsole,
    job: Job,
    before: dict[str, float],
    last: dict[str, Any],
    seconds: float,
    steps: int,
    best: Best | None,
) -> None:
    tokens = steps * job.config.batch_size * job.rows.seq_len
    table = Table(title=f"{job.config.stage}: {job.total_steps} steps", title_justify="left", show_header=False)
    table.add_row(
        "this session",
        f"{steps} steps, {tokens:,} tokens in {seconds:.0f} s, {tokens / seconds:,.0f} tokens/s "
        "with evaluation and saving",
    )
    table.add_row("last training loss", _number(last["loss"]))
    for key, name in _compared(last).items():
        after = _measured(last, key)
        table.add_row(name, f"{_measured(before, key)} before -> {after} after" if key in before else after)
    if best:
        name = _compared({best.metric: best.value}).get(best.metric, best.metric)
        saved = best.step in job.workdir.steps()
        where = f"saved: --step {best.step} takes it" if saved else "not saved: keep_best=True would keep it"
        table.add_row("best evaluation", f"{name} {best.value:.4f} at step {best.step}, {where}")
    table.add_row("skipped steps", str(last["skipped"]))
    table.add_row("peak memory", f"{last['peak_memory_gib']:.2f} GiB")
    console.show(table)
    path = job.workdir.path
    console.say(f"curve:   python -m minimind_jax.training.plot {path}")
    console.say(f"score:   python evaluate.py --model {path} --data FILE.jsonl")
    console.say(f"export:  python -m convert.to_hf --model {path} --out {path}-hf")


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
