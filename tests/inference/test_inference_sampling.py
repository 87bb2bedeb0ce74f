"""Sampling against an independent numpy reference of temperature, top-k, top-p and min-p, and transformers' code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from minimind_jax.inference import sampling as module
from minimind_jax.inference.options import Options

V, N = 12, 20_000
LOGITS = np.random.default_rng(3).normal(0, 1.5, V).astype(np.float32)


sample = jax.jit(module.sample)
adjust = jax.jit(module.adjust)
keep_top = jax.jit(module.keep_top)


def make_sampling(n_rows: int, **options) -> module.Sampling:
    return module.make_sampling(Options(**options), range(n_rows))


def reference(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float = 0.0) -> np.ndarray:
    """The distribution over tokens, float64, by walking down the ranking."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    ranking = sorted(range(len(logits)), key=lambda i: -logits[i])[: top_k or None]
    total = sum(weights[i] for i in ranking)
    result, mass = np.zeros(len(logits)), 0.0
    for i in ranking:
        if weights[i] < min_p * weights[ranking[0]]:
            break
        result[i] = weights[i]
        mass += weights[i] / total
        if mass >= top_p and top_p < 1:  # 1 keeps all, also those that no longer add to a sum of doubles
            break
    return result / result.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0),
        (0.6, 0, 1.0, 0.0),
        (2.5, 0, 1.0, 0.0),
        (1.0, 3, 1.0, 0.0),
        (1.3, 0, 0.8, 0.0),
        (0.9, 5, 0.7, 0.0),
        (1.0, 1, 1.0, 0.0),
        (1.5, 0, 1.0, 0.2),
        (1.0, 6, 0.9, 0.1),
    ],
)
def test_frequencies(temperature, top_k, top_p, min_p):
    sampling = make_sampling(N, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=1)
    drawn = sample(jnp.tile(LOGITS, (N, 1)), sampling, jnp.full(N, 9))
    counts = np.bincount(drawn, minlength=V)
    expected = reference(LOGITS, temperature, top_k, top_p, min_p)
    assert not counts[expected == 0].any()
    sigma = np.sqrt(N * expected * (1 - expected))
    assert (np.abs(counts - N * expected) <= 4.5 * sigma + 1e-6).all(), (counts, N * expected)


@settings(max_examples=200, deadline=None)
@example(seed=68, top_k=0, top_p=1.0, spread=10.0)
@given(
    seed=st.integers(0, 10**6),
    top_k=st.integers(0, 2 * V),
    top_p=st.integers(1, 1000).map(lambda i: i / 1000),
    spread=st.sampled_from([0.1, 1.0, 10.0]),
)
def test_support_is_the_reference_set(seed, top_k, top_p, spread):
    logits = np.random.default_rng(seed).normal(0, spread, V).astype(np.float32)
    expected = reference(logits, 1.0, top_k, top_p) > 0
    if top_p < 1:  # float32 cannot tell on which side of the edge a sum within its rounding falls
        nearby = [reference(logits, 1.0, top_k, top_p + e) > 0 for e in (-1e-6, 1e-6)]
        assume(all((n == expected).all() for n in nearby))
    kept = np.asarray(keep_top(logits[None], make_sampling(1, top_k=top_k, top_p=top_p))[0])
    np.testing.assert_array_equal(np.isfinite(kept), expected)
    np.testing.assert_array_equal(kept[np.isfinite(kept)], logits[np.isfinite(kept)])


def test_ties_at_the_edge_stay():
    logits = jnp.asarray([[0.0, 2.0, 1.0, 1.0, 1.0, -1.0]])
    for top_k, top_p in ((2, 1.0), (0, 0.6)):
        kept = np.asarray(keep_top(logits, make_sampling(1, top_k=top_k, top_p=top_p)))
        assert np.isfinite(kept)[0].tolist() == [False, True, True, True, True, False]


def test_each_row_has_its_own_values():
    rows = [dict(temperature=0.0, top_k=0, top_p=1.0), dict(temperature=1.0, top_k=2, top_p=1.0)]
    rows += [dict(temperature=5.0, top_k=0, top_p=0.3), dict(temperature=5.0, top_k=0, top_p=1.0)]
    one_each = [make_sampling(4, seed=0, **values) for values in rows]
    mixed = jax.tree.map(lambda *x: jnp.stack([x[i][i] for i in range(4)]), *one_each)
    logits = jnp.tile(LOGITS, (4, 1))
    for position in range(8):
        at = jnp.full(4, position)
        expected = [int(sample(logits, s, at)[i]) for i, s in enumerate(one_each)]
        assert sample(logits, mixed, at).tolist() == expected


def test_temperature_limits():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(64, V)), jnp.float32)
    for cold in (0.0, 1e-30, 1e-300):  # the last underflows in float32
        sampling = make_sampling(64, temperature=cold, top_k=0, top_p=1.0, seed=0)
        np.testing.assert_array_equal(sample(logits, sampling, jnp.arange(64)), jnp.argmax(logits, -1))
    for hot in (1e6, 1e300):
        sampling = make_sampling(N, temperature=hot, top_k=0, top_p=1.0, seed=0)
        counts = np.bincount(sample(jnp.tile(LOGITS, (N, 1)), sampling, jnp.zeros(N, jnp.int32)), minlength=V)
        assert (np.abs(counts - N / V) < 4.5 * np.sqrt(N / V)).all()


def test_draws_depend_on_seed_row_and_position_only():
    def draws(n_rows, seed, position):
        sampling = make_sampling(n_rows, temperature=1.0, top_k=0, top_p=1.0, seed=seed)
        return sample(jnp.zeros((n_rows, 1000)), sampling, jnp.full(n_rows, position)).tolist()

    base = draws(8, 0, 5)
    assert draws(8, 0, 5) == base
    assert draws(2, 0, 5) == base[:2]
    assert len(set(base)) > 4  # rows differ
    for other in (draws(8, 1, 5), draws(8, 0, 6), draws(8, 2**32 - 1, 5)):
        assert sum(a == b for a, b in zip(base, other, strict=True)) <= 1


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.integers(0, V),
    top_p=st.sampled_from([0.3, 0.77, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    penalty=st.sampled_from([0.7, 1.0, 1.3]),
)
def test_cuts_and_penalty_are_those_of_transformers(seed, temperature, top_k, top_p, min_p, penalty):
    torch, logits_process = pytest.importorskip("torch"), pytest.importorskip("transformers.generation.logits_process")
    rng = np.random.default_rng(seed)
    logits, text = rng.normal(0, 2, (1, V)).astype(np.float32), rng.integers(0, V, (1, 5))
    scores, ids = torch.tensor(logits), torch.tensor(text)
    steps = [
        logits_process.RepetitionPenaltyLogitsProcessor(penalty),
        logits_process.TemperatureLogitsWarper(temperature),
        logits_process.TopKLogitsWarper(top_k) if top_k else None,
        logits_process.TopPLogitsWarper(top_p) if top_p < 1 else None,
        logits_process.MinPLogitsWarper(min_p) if min_p else None,
    ]
    for step in filter(None, steps):
        scores = step(ids, scores)
    seen = np.zeros((1, V), bool)
    seen[0, text[0]] = True
    options = Options(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty, seed=seed
    )
    sampling = module.make_sampling(options)
    penalised = adjust(logits, sampling, seen, np.zeros((1, V), np.int32))
    kept = np.asarray(keep_top(penalised / temperature, sampling))
    theirs = scores.numpy()
    np.testing.assert_array_equal(np.isfinite(kept), np.isfinite(theirs))
    np.testing.assert_allclose(kept[np.isfinite(kept)], theirs[np.isfinite(theirs)], rtol=1e-5)
    drawn = int(sample(penalised, sampling, jnp.zeros(1, jnp.int32))[0])
    assert np.isfinite(theirs[0, drawn])


def adjusted_by_numpy(logits, prompt, answer, repetition, frequency, presence, bias):
    """What vLLM's sampler does, one token at a time."""
    logits = logits.astype(np.float64)
    for token, value in bias.items():
        logits[token] += value
    for token in {*prompt, *answer}:
        logits[token] = logits[token] / repetition if logits[token] > 0 else logits[token] * repetition
    for token in answer:
        logits[token] -= frequency
    for token in set(answer):
        logits[token] -= presence
    return logits


@settings(max_examples=80, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10**6))
def test_bias_and_penalties_are_vllms(data, seed):
    """Several rows, each with values of its own."""
    tokens = st.lists(st.integers(0, V - 1), max_size=9)
    penalties = st.sampled_from([-2.0, -0.5, 0.0, 0.0, 0.7, 2.0])
    biases = st.dictionaries(st.integers(0, V - 1), st.sampled_from([-100.0, -1.5, 0.0, 3.0, 100.0]), max_size=4)
    rows = data.draw(
        st.lists(
            st.tuples(tokens, tokens, st.sampled_from([0.7, 1.0, 1.3]), penalties, penalties, biases),
            min_size=1,
            max_size=3,
        )
    )
    logits = np.random.default_rng(seed).normal(0, 2, (len(rows), V)).astype(np.float32)
    in_prompt, counts = np.zeros((len(rows), V), bool), np.zeros((len(rows), V), np.int32)
    sampling = []
    for row, (prompt, answer, repetition, frequency, presence, bias) in enumerate(rows):
        in_prompt[row, prompt] = True
        np.add.at(counts[row], answer, 1)
        options = Options(
            repetition_penalty=repetition,
            frequency_penalty=frequency,
            presence_penalty=presence,
            logit_bias=tuple(bias.items()),
        )
        sampling.append(module.make_sampling(options))
    stacked = jax.tree.map(lambda *leaves: np.concatenate(leaves), *sampling)
    ours = adjust(logits, stacked, in_prompt, counts)
    theirs = [adjusted_by_numpy(logits[i], *row) for i, row in enumerate(rows)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)
