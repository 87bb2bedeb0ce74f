"""Log-likelihood of continuations given their contexts: how a model chooses among answers without writing any.

One forward pass scores a packed row of items (likelihood_rows.py). Contexts that are too long lose their beginning
as in lm-eval (0.4.13, models/huggingface.py): a continuation and what of its context is left are at most
max_seq_len + 1 tokens, of which all but the last are read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.evaluation.likelihood_rows import Arrays, Item, Rows, arrays, pack
from minimind_jax.inference.cache import power_of_two
from minimind_jax.inference.devices import on_each_device
from minimind_jax.model import Params, hidden_states, logits
from minimind_jax.model.attention import masked_attention

BATCH_TOKENS = 4096  # of one device in one forward pass; a longer row goes alone
_QUERY_BLOCK = 128  # queries whose scores exist at a time: attention's and the vocabulary's


@dataclass(frozen=True)
class ChoiceTokens:
    """A context of at least one token (bos, if nothing else) and its possible continuations, of at least one each."""

    context: Sequence[int]
    continuations: Sequence[Sequence[int]]


@dataclass(frozen=True)
class ChoiceScores:
    """Of one item's C continuations."""

    logprobs: np.ndarray  # (C,) float64, nats, summed over the tokens of each
    is_greedy: np.ndarray  # (C,) bool, whether each of its tokens is the most likely one
    truncated: bool  # the context lost its beginning for at least one of them


def choice_logprobs(
    config: ModelConfig, params: Params, items: Sequence[ChoiceTokens], *, mesh: Mesh | None = None
) -> list[np.ndarray]:
    """Only the `logprobs` of `score_choices`."""
    return [scores.logprobs for scores in score_choices(config, params, items, mesh=mesh)]


def score_choices(
    config: ModelConfig,
    params: Params,
    items: Sequence[ChoiceTokens],
    *,
    dtype: jnp.dtype = jnp.float32,
    mesh: Mesh | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int], None] | None = None,
) -> list[ChoiceScores]:
    """log p(continuation | context) of every continuation of every item.

    Args:
      params: numpy or jax arrays, on one device or replicated.
      dtype: of weights and activations; float64 needs jax's x64.
      mesh: splits the rows over all its devices, each with a whole copy of the weights.
      batch_tokens: of one device in one forward pass.
      progress: told after each pass how many items are done.

    Raises:
      UserError: an empty context or continuation, a token outside the vocabulary, a continuation longer than
        max_seq_len, or a log-probability that is not a number.
    """
    if not items:
        return []
    split = [part for i, item in enumerate(items) for part in _fitting(config, i, item)]
    params = jax.device_put(params, NamedSharding(mesh, P()) if mesh else None)
    logprobs = [np.zeros(len(item.continuations)) for item in items]
    is_greedy = [np.ones(len(item.continuations), bool) for item in items]
    waiting, done = np.bincount([part.number for part in split], minlength=len(items)), 0
    for rows in pack(config, split):
        for some, scored in _forward(config, params, rows, dtype, mesh, batch_tokens):
            for row, row_logprobs, row_greedy in zip(some, *scored, strict=False):  # scored has empty rows too
                start = 0
                for part in row.items:
                    for choice, tokens in zip(part.choices, part.continuations, strict=True):
                        of_tokens = slice(start, start := start + len(tokens))
                        logprobs[part.number][choice] = row_logprobs[of_tokens].sum()
                        is_greedy[part.number][choice] = row_greedy[of_tokens].all()
                    waiting[part.number] -= 1
                    done += not waiting[part.number]
            if progress:
                progress(done)
    if not all(np.isfinite(values).all() for values in logprobs):
        raise UserError("the model's log-probabilities are not finite: its weights are broken")
    truncated = {part.number for part in split if len(part.context) < len(items[part.number].context)}
    return [ChoiceScores(*pair, i in truncated) for i, pair in enumerate(zip(logprobs, is_greedy, strict=True))]


def _fitting(config: ModelConfig, number: int, item: ChoiceTokens) -> Iterator[Item]:
    """The item, and apart from it each continuation for which its context is too long."""
    if not len(item.context) or not all(map(len, item.continuations)):
        raise UserError(f"item {number} has an empty context or continuation: each needs at least one token")
    for token in (*item.context, *(token for tokens in item.continuations for token in tokens)):
        if not 0 <= token < config.vocab_size:
            raise UserError(f"item {number} holds the token {token}, but the vocabulary has {config.vocab_size}")
    together = []
    for choice, tokens in enumerate(item.continuations):
        room = config.max_seq_len + 1 - len(tokens)
        if room < 1:
            raise UserError(
                f"item {number} has a continuation of {len(tokens)} tokens, more than the model's limit max_seq_len="
                f"{config.max_seq_len}"
            )
        if len(item.context) <= room:
            together.append(choice)
        else:
            yield Item(number, [choice], item.context[-room:], [tokens])
    if together:
        yield Item(number, together, item.context, [item.continuations[choice] for choice in together])


def _forward(
    config: ModelConfig, params: Params, rows: Rows, dtype: jnp.dtype, mesh: Mesh | None, batch_tokens: int
) -> Iterator[tuple[Sequence, tuple[np.ndarray, np.ndarray]]]:
    """Some rows at a time, with what `_score` says of their queries; one batch is ahead on the device."""
    n_devices = mesh.size if mesh else 1
    most = max(1, batch_tokens // rows.length)
    n_rows = n_devices * min(most, power_of_two(-(-len(rows.rows) // n_devices), 1))
    running: list = []
    for start in range(0, len(rows.rows), n_rows):
        some = rows.rows[start : start + n_rows]
        batch = arrays(some, n_rows, rows.length, rows.queries)
        if mesh:
            batch = jax.device_put(batch, NamedSharding(mesh, P(mesh.axis_names)))
        with jax.default_matmul_precision("highest"):  # GPUs would round float32 products to TF32
            running.append((some, _score(config, params, batch, dtype, mesh)))
        if len(running) > 1:
            yield _fetched(*running.pop(0))
    yield _fetched(*running.pop())


def _fetched(some: Sequence, scored: tuple[jax.Array, jax.Array]) -> tuple[Sequence, tuple[np.ndarray, np.ndarray]]:
    return some, (np.asarray(scored[0], np.float64), np.asarray(scored[1]))


@functools.partial(jax.jit, static_argnames=("config", "dtype", "mesh"))
def _score(
    config: ModelConfig, params: Params, batch: Arrays, dtype: jnp.dtype, mesh: Mesh | None
) -> tuple[jax.Array, jax.Array]:
    """log p of each query's target, (B, Q) in at least float32, and whether it is the most likely token, (B, Q)."""

    def score(params: Params, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        attention = functools.partial(_tree_attention, branches=batch.branches)
        hidden = hidden_states(
            config, params, batch.tokens, batch.positions, batch.items, attention=attention, dtype=dtype
        )
        asked = jnp.take_along_axis(hidden, batch.at[..., None], axis=1)  # (B, Q, D)
        block = min(_QUERY_BLOCK, batch.at.shape[1])
        blocks = asked.reshape(-1, block, config.dim), batch.targets.reshape(-1, block)
        scored = jax.lax.map(lambda some: _target_logprobs(params, *some), blocks)
        return jax.tree.map(lambda leaf: leaf.reshape(batch.at.shape), scored)

    return on_each_device(score, mesh)(params, batch)


def _target_logprobs(params: Params, hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of hidden states (n, D) and targets (n,)."""
    scores = logits(params, hidden)  # (n, V)
    own = jnp.take_along_axis(scores, targets[:, None], axis=-1)[:, 0]
    return own - jax.nn.logsumexp(scores, axis=-1), jnp.argmax(scores, axis=-1) == targets


def _tree_attention(q: jax.Array, k: jax.Array, v: jax.Array, items: jax.Array, *, branches: jax.Array) -> jax.Array:
    """Attention (B, T, H, h) along the paths of likelihood_rows.py; a block of queries reads no keys after its end."""
    T = q.shape[1]
    block = max(_QUERY_BLOCK, T // 8)
    out = []
    for start in range(0, T, block):
        end = min(start + block, T)
        own_item, own_branch = items[:, start:end, None], branches[:, start:end, None]  # (B, n, 1)
        item, branch = items[:, None, :end], branches[:, None, :end]  # (B, 1, end)
        of_path = (item == 0) | (item == own_item) & ((branch == 0) | (branch == own_branch))
        causal = jnp.arange(start, end)[:, None] >= jnp.arange(end)
        mask = (of_path & causal)[:, None, None]
        out.append(masked_attention(q[:, start:end], k[:, :end], v[:, :end], mask))
    return jnp.concatenate(out, axis=1)
