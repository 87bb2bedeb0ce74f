"""What the live parameters write: continuations or answers to the recipe's prompts, and how answers look on average."""

from __future__ import annotations

from minimind_jax.chat import Conversation, chat_template
from minimind_jax.data import PairRows
from minimind_jax.evaluation.answers import describe_answers
from minimind_jax.inference import Options, generate
from minimind_jax.model import Params
from minimind_jax.training import processes
from minimind_jax.training.console import TrainingConsole
from minimind_jax.training.job import Job
from minimind_jax.training.mesh import whole_on_one_device
from minimind_jax.training.metrics import MetricsLog
from minimind_jax.training.step import compute_dtype

_NEW_TOKENS = 64
_ANSWERS, _ANSWER_TOKENS, _PROMPT_TOKENS = 32, 128, 512


def show_samples(job: Job, params: Params, step: int, console: TrainingConsole, metrics: MetricsLog | None) -> None:
    """Prints greedy continuations of `sample_prompts`, in chat stages answers to them. Logs them, too.

    Called by all processes; all but process 0 wait.
    """
    prompts, tokenizer = job.config.sample_prompts, job.tokenizer
    if not prompts:
        return
    ids = [_prompt_ids(job, prompt) for prompt in prompts]
    room = min(_NEW_TOKENS, job.config.model.max_seq_len - max(map(len, ids)))
    if room < 1:
        return
    continuations = _generate(job, params, ids, room)
    for prompt, tokens in zip(prompts, continuations, strict=True) if continuations else ():
        text = tokenizer.decode(tokens)
        console.say(f"  {prompt!r} -> {text!r}")
        if metrics:
            metrics.write_sample(prompt, text, step)


def answer_statistics(job: Job, params: Params) -> dict[str, float]:
    """Whether preferences ruin the language: statistics of sampled answers to up to 32 of the pairs' prompts.

    Returns: answers/repetition, answers/length and answers/unfinished (`describe_answers`), at temperature 0.8 and at
    most 128 new tokens, always with the same random numbers; {} for stages without pairs. Called by all processes; all
    but process 0 wait, and have no answers to describe.
    """
    rows = job.val_rows or job.rows
    if not isinstance(rows, PairRows):
        return {}
    room = min(_ANSWER_TOKENS, job.config.model.max_seq_len // 2)
    prompts = rows.prompts(_ANSWERS, min(_PROMPT_TOKENS, job.config.model.max_seq_len - room))
    if not prompts:
        return {}
    answers = _generate(job, params, prompts, room, temperature=0.8)
    if not answers:
        return {}
    return {f"answers/{name}": value for name, value in describe_answers(answers, room).items()}


def _prompt_ids(job: Job, prompt: str) -> list[int]:
    if job.config.stage == "pretrain":
        return [job.tokenizer.bos_id, *job.tokenizer.encode(prompt)]
    return chat_template(job.tokenizer).prompt(Conversation([{"role": "user", "content": prompt}])).tokens


def _generate(
    job: Job, params: Params, prompts: list[list[int]], new_tokens: int, temperature: float = 0.0
) -> list[list[int]]:
    """Generates on one device of process 0, however the parameters are sharded; [] in the others."""
    whole = whole_on_one_device(job.mesh, params)
    tokens: list[list[int]] = []
    if processes.first():
        tokens = generate(
            job.config.model,
            whole,
            prompts,
            Options(max_new_tokens=new_tokens, temperature=temperature),
            eos_id=job.tokenizer.eos_id,
            dtype=compute_dtype(job.config),
        )
    processes.barrier()
    return tokens
