"""Answers by generation: many prompts at once on the continuous-batching engine, and what several tries are worth."""

from __future__ import annotations

import math
import queue
from collections.abc import Sequence
from dataclasses import dataclass, replace

from minimind_jax.data.progress import Progress
from minimind_jax.errors import UserError
from minimind_jax.inference import Engine, Options, Piece
from minimind_jax.workdir import LoadedModel


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    `reason` is why it ended: "stop" (end token or stop text), "length" (cut at the limit), or "no room": the prompt
    fills the context, and nothing was written.
    """

    text: str
    tokens: int
    reason: str


def write_answers(
    model: LoadedModel, prompts: Sequence[Sequence[int]], options: Options, samples: int, what: str
) -> list[list[Answer]]:
    """`samples` answers to each prompt, in float32 on the default device.

    Draws depend on (prompt's index, sample's index), not on what else is in the batch.

    Args:
      prompts: token ids. One that leaves no room for an answer in the model's context has answers without text.
      options: of all; `seed` is replaced.
      what: begins the line of progress.

    Raises:
      UserError: the engine failed, such as for want of memory.
    """
    wanted = [
        (i, k) for i, prompt in enumerate(prompts) if len(prompt) < model.config.max_seq_len for k in range(samples)
    ]
    # The longest first: the batch, once it has grown, need not grow again.
    wanted.sort(key=lambda pair: -len(prompts[pair[0]]))
    answers = [[Answer("", 0, "no room")] * samples for _ in prompts]
    if not wanted:
        return answers
    pieces: queue.SimpleQueue[tuple[int, int, Piece]] = queue.SimpleQueue()
    progress, n_done = Progress(what, len(wanted)), 0
    texts = {pair: "" for pair in wanted}
    counts = dict.fromkeys(wanted, 0)
    with Engine(model.config, model.params, model.tokenizer, max_queue=len(wanted)) as engine:
        for i, k in wanted:

            def put(piece: Piece, i: int = i, k: int = k) -> None:
                pieces.put((i, k, piece))

            engine.submit(prompts[i], replace(options, seed=(i * samples + k) % 2**32), put)
        while n_done < len(wanted):
            i, k, piece = pieces.get()
            texts[i, k] += piece.text
            counts[i, k] += len(piece.tokens)
            if piece.finish_reason in ("error", "cancelled"):
                raise UserError(f"generation failed: {piece.error or 'the engine was closed'}")
            if piece.finish_reason:
                answers[i][k] = Answer(texts.pop((i, k)), counts[i, k], piece.finish_reason)
                n_done += 1
                progress.update(n_done)
    progress.close()
    return answers


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that at least one of k tries is right, from n tries of which `correct` were, without bias.

    Chen et al. 2021 (arXiv:2107.03374), equation 1: 1 - C(n - c, k) / C(n, k).

    Raises:
      ValueError: not 0 <= correct <= n and 1 <= k <= n.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {correct} right ones among {n}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)
