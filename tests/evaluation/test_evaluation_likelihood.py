"""Log-likelihoods of continuations against one plain forward pass each, in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluation_helpers import random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.evaluation.likelihood import ChoiceTokens, choice_logprobs, score_choices
from minimind_jax.evaluation.likelihood_rows import Item, arrays, pack
from minimind_jax.model import hidden_states, logits, xla_attention

CONFIG = ModelConfig(vocab_size=6400, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, max_seq_len=96)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def params():
    return random_model(CONFIG, scale=2.0).params


@functools.partial(jax.jit, static_argnames="dtype")
def _plain(params, tokens, dtype):
    positions = jnp.arange(tokens.shape[1])[None]
    hidden = hidden_states(
        CONFIG, params, tokens, positions, jnp.ones_like(tokens), attention=xla_attention, dtype=dtype
    )
    return jax.nn.log_softmax(logits(params, hidden)[0], axis=-1)


def reference(params, context, continuation):
    """As lm-eval's HFLM does it: the tail of both, all but the last token read."""
    read = [*context, *continuation][-(CONFIG.max_seq_len + 1) :][:-1]
    padded = np.zeros((1, CONFIG.max_seq_len), np.int32)  # one compile; padding on the right is not seen
    padded[0, : len(read)] = read
    scores = np.asarray(_plain(params, padded, jnp.float64))[len(read) - len(continuation) : len(read)]
    return (
        sum(scores[i, token] for i, token in enumerate(continuation)),
        all(scores[i].argmax() == token for i, token in enumerate(continuation)),
    )


def tokens(n):
    return RNG.integers(0, CONFIG.vocab_size, n).tolist()


def some_items():
    preamble = tokens(40)
    items = [ChoiceTokens([*preamble, *tokens(n)], [tokens(k) for k in (1, 1, 1, 1)]) for n in (3, 9, 1, 7)]
    items += [ChoiceTokens(tokens(n), [tokens(k) for k in lengths]) for n, lengths in [(1, (5,)), (30, (1, 12, 3))]]
    same = tokens(11)
    items += [ChoiceTokens(same, [tokens(2), tokens(4)]), ChoiceTokens(same, [tokens(3)])]
    items += [ChoiceTokens([*same, *tokens(2)], [tokens(60), tokens(40), tokens(60)])]
    return items


def test_every_log_likelihood_is_that_of_a_forward_pass_of_its_own(params):
    items = some_items()
    with jax.enable_x64(True):
        scored = score_choices(CONFIG, params, items, dtype=jnp.float64)
        for item, scores in zip(items, scored, strict=True):
            expected = [reference(params, item.context, continuation)[0] for continuation in item.continuations]
            np.testing.assert_allclose(scores.logprobs, expected, rtol=0, atol=1e-9)
            assert not scores.truncated


def test_float32_agrees_with_float64(params):
    items = some_items()
    with jax.enable_x64(True):
        exact = score_choices(CONFIG, params, items, dtype=jnp.float64)
    for scores, logprobs in zip(exact, choice_logprobs(CONFIG, params, items), strict=True):
        np.testing.assert_allclose(logprobs, scores.logprobs, rtol=0, atol=1e-4)


def test_greedy_continuations_are_told_from_others(params):
    context, greedy = tokens(5), []
    with jax.enable_x64(True):
        for _ in range(3):
            padded = np.zeros((1, CONFIG.max_seq_len), np.int32)
            padded[0, : 5 + len(greedy)] = [*context, *greedy]
            greedy.append(int(np.asarray(_plain(params, padded, jnp.float64))[4 + len(greedy)].argmax()))
    other = [*greedy[:2], (greedy[2] + 1) % CONFIG.vocab_size]
    (scores,) = score_choices(CONFIG, params, [ChoiceTokens(context, [greedy, greedy[:1], other, other[2:]])])
    assert scores.is_greedy.tolist() == [True, True, False, False]


def test_a_context_that_is_too_long_keeps_its_tail_for_each_continuation_by_itself(params):
    context = tokens(CONFIG.max_seq_len)
    items = [
        ChoiceTokens(context, [tokens(1), tokens(2), tokens(CONFIG.max_seq_len), tokens(1)]),
        ChoiceTokens(context, [tokens(1)]),
        ChoiceTokens(tokens(3 * CONFIG.max_seq_len), [tokens(5)]),
    ]
    with jax.enable_x64(True):
        scored = score_choices(CONFIG, params, items, dtype=jnp.float64)
        for item, scores in zip(items, scored, strict=True):
            expected = [reference(params, item.context, continuation)[0] for continuation in item.continuations]
            np.testing.assert_allclose(scores.logprobs, expected, rtol=0, atol=1e-9)
    assert [scores.truncated for scores in scored] == [True, False, True]


def test_any_number_of_devices_gives_the_same(params):
    items = some_items()
    alone = choice_logprobs(CONFIG, params, items, mesh=None)
    for n in (3, 8):
        mesh = Mesh(np.array(jax.devices()[:n]), ("data",))
        for one, other in zip(alone, choice_logprobs(CONFIG, params, items, mesh=mesh), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_small_batches_give_the_same_and_say_how_far_they_are(params):
    items, done = [ChoiceTokens(tokens(70), [tokens(9), tokens(20)]) for _ in range(9)], []
    whole = choice_logprobs(CONFIG, params, items)
    pieces = score_choices(CONFIG, params, items, batch_tokens=1, progress=done.append)
    for one, other in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(one, other.logprobs, rtol=0, atol=1e-5)
    assert len(done) > 2 and done == sorted(done) and done[-1] == len(items)


def test_what_is_shared_is_laid_once():
    preamble = list(range(100, 200))
    items = [Item(i, [0, 1, 2, 3], [*preamble, 7, i, 8], [[1], [2], [3], [4]]) for i in range(40)]
    (rows,) = pack(CONFIG, items)
    (row,) = rows.rows
    assert row.shared == 101 and rows.length == 256 and rows.queries == 256  # 101 + 40 x 2 tokens, 160 queries
    packed = arrays(rows.rows, 2, rows.length, rows.queries)
    assert (packed.items[0] >= 0).sum() == 101 + 40 * 2 and (packed.items[1] == -1).all()
    assert packed.positions[0, 101:105].tolist() == [101, 102, 101, 102]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_path_through_a_row_is_its_item(data):
    """Whatever the items, what a query sees is exactly its context and what of its continuation stands before it."""
    token, heads = st.integers(0, 3), [[], [0, 1, 2, 3] * 5, [3] * 30]
    continuations = st.lists(st.lists(token, min_size=1, max_size=6), min_size=1, max_size=4)
    drawn = data.draw(
        st.lists(
            st.tuples(st.sampled_from(heads), st.lists(token, min_size=1, max_size=300), continuations), min_size=1
        )
    )
    items = [Item(i, range(len(c)), [*head, *tail], c) for i, (head, tail, c) in enumerate(drawn)]
    seen = []
    for rows in pack(CONFIG, items):
        a = arrays(rows.rows, len(rows.rows), rows.length, rows.queries)
        for r, row in enumerate(rows.rows):
            query = 0
            for item in row.items:
                seen.append(item.number)
                for continuation in item.continuations:
                    for i, target in enumerate(continuation):
                        at = a.at[r, query]
                        own = (a.items[r] == a.items[r, at]) & (
                            (a.branches[r] == 0) | (a.branches[r] == a.branches[r, at])
                        )
                        visible = np.flatnonzero(((a.items[r] == 0) | own)[: at + 1])
                        assert a.tokens[r, visible].tolist() == [*item.context, *continuation[:i]]
                        assert a.positions[r, visible].tolist() == list(range(len(item.context) + i))
                        assert a.targets[r, query] == target
                        query += 1
    assert sorted(seen) == list(range(len(items)))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (ChoiceTokens([], [[1]]), "item 1 has an empty context or continuation"),
        (ChoiceTokens([1], [[1], []]), "item 1 has an empty context or continuation"),
        (ChoiceTokens([1], [[6400]]), "item 1 holds the token 6400, but the vocabulary has 6400"),
        (ChoiceTokens([1], [[1] * 97]), "item 1 has a continuation of 97 tokens, more than the model's limit"),
    ],
)
def test_what_cannot_be_scored_is_said(params, item, message):
    with pytest.raises(UserError, match=message):
        choice_logprobs(CONFIG, params, [ChoiceTokens([1], [[1]]), item])


def test_broken_weights_are_said(params):
    broken = params | {"final_norm": params["final_norm"] * np.nan}
    with pytest.raises(UserError, match="not finite"):
        choice_logprobs(CONFIG, broken, [ChoiceTokens([1], [[1]])])


def test_nothing_gives_nothing(params):
    assert choice_logprobs(CONFIG, params, []) == []
