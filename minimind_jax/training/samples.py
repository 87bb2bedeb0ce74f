"""Continuations of the recipe's prompts, by the live parameters."""

from __future__ import annotations

import jax

from minimind_jax.inference import generate
from minimind_jax.model import Params
from minimind_jax.training.console import TrainingConsole
from minimind_jax.training.job import Job
from minimind_jax.training.metrics import MetricsLog
from minimind_jax.training.step import compute_dtype

_NEW_TOKENS = 48


def show_samples(job: Job, params: Params, step: int, console: TrainingConsole, metrics: MetricsLog | None) -> None:
    """Prints greedy continuations of `sample_prompts`, and writes them to TensorBoard."""
    prompts, tokenizer = job.config.sample_prompts, job.tokenizer
    if not prompts or jax.process_count() > 1:  # several processes would have to sample in step
        return
    ids = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    room = min(_NEW_TOKENS, job.config.model.max_seq_len - max(map(len, ids)))
    if room < 1:
        return
    new = generate(
        job.config.model,
        params,
        ids,
        max_new_tokens=room,
        eos_id=tokenizer.eos_id,
        dtype=compute_dtype(job.config),
    )
    for prompt, tokens in zip(prompts, new, strict=True):
        text = tokenizer.decode(tokens)
        console.say(f"  {prompt!r} -> {text!r}")
        if metrics:
            metrics.write_text(f"sample/{prompt}", text, step)
