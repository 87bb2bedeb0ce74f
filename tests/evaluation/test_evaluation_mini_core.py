"""Mini-CORE: its sets are fair and always the same, its value is what the formulas say."""

import itertools
import json
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluation_helpers import random_model
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minimind_jax.config import ModelConfig
from minimind_jax.data.generate import FAMILIES, LANGUAGES
from minimind_jax.evaluation.matched_sets import digest, stands_in
from minimind_jax.evaluation.mini_core import (
    accuracy,
    mini_core_result,
    mini_core_sets,
    open_mini_core,
    stratum,
)
from minimind_jax.evaluation.mini_core_tasks import KINDS
from minimind_jax.evaluation.task import TaskOptions
from minimind_jax.model import hidden_states, logits, xla_attention
from minimind_jax.tokenizer import load_tokenizer

SETS = mini_core_sets()
TOKENIZER = load_tokenizer("")
CONFIG = ModelConfig(vocab_size=6400, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, max_seq_len=512)


def tables(score) -> list[np.ndarray]:
    """Of a function of (context, choice)."""
    return [np.array([[score(one.shots + c, x) for x in one.choices] for c in one.contexts]) for one in SETS]


def result_of(score):
    return mini_core_result(SETS, tables(score), len(SETS))


def test_the_sets_of_this_version_are_these():
    """Raise VERSION in mini_core.py where this changes: values of two versions do not compare."""
    assert digest(SETS) == "91333698ce31ab4900283b75da1865fb0b2cf5e91c87885c99bb24f7fa4c7384"
    assert len(SETS) == len({one.id for one in SETS})


def test_all_strata_have_their_sets_and_a_limit_takes_the_first_of_each():
    counts = {group: [stratum(one) for one in SETS].count(group) for group in map(stratum, SETS)}
    assert counts == {f"{kind.name}-{language}": kind.sets for kind in KINDS for language in LANGUAGES}
    task = open_mini_core(TaskOptions(limit=100))
    each = 100 // len(counts)
    assert task.of == len(SETS) and len(task) == each * len(counts)
    for group in counts:
        some = [one for one in task.sets if stratum(one) == group]
        assert some == [one for one in SETS if stratum(one) == group][:each]
    assert open_mini_core(TaskOptions(limit=len(SETS))).sets == SETS


def test_choices_stand_only_where_their_task_allows():
    in_context = {kind.name: kind.in_context for kind in KINDS}
    for one in SETS:
        assert len(one.contexts) == len(one.choices) == len(set(one.contexts)) == len(set(one.choices)) == 4
        assert all(context == context.rstrip(" ") and context for context in one.contexts)
        bare = [choice.strip(' 。”".!,，') for choice in one.choices]
        for (i, context), (j, choice) in itertools.product(enumerate(one.contexts), enumerate(bare)):
            assert stands_in(choice, context) == (in_context[one.task] and i == j), one.id


def test_operands_are_held_out():
    """No fact of a set stands in the generator's training texts: their operands are on the other side of the split."""
    rng, by_name = random.Random(0), {family.name: family for family in FAMILIES}
    for name in ("definition", "opposites", "translation", "repeat"):
        ours = {context + choice for one in SETS if one.task == name for context, choice in pairs(one)}
        for _ in range(4000):
            item = by_name[name].sample(rng, "train", rng.choice(LANGUAGES))
            assert item.statement not in ours


def pairs(one):
    return zip(one.contexts, one.choices, strict=True)


def test_what_does_not_read_the_context_is_at_chance_exactly():
    """Uniform, unigram and length models, and any other whose likelihoods of a continuation are always the same."""
    rng = np.random.default_rng(0)
    unigram = np.log(rng.dirichlet(np.full(TOKENIZER.vocab_size, 0.1)) + 1e-12)
    encoded = {choice: TOKENIZER.encode(choice) for one in SETS for choice in one.choices}
    for score in (
        lambda _, x: -len(encoded[x]) * math.log(TOKENIZER.vocab_size),
        lambda _, x: float(unigram[encoded[x]].sum()),
        lambda _, x: float(len(x)),
    ):
        result = result_of(score)
        assert abs(result.mean()) < 1e-12 and result.mean() == pytest.approx(result.details["value"], abs=1e-12)


@pytest.mark.slow
def test_noise_is_at_chance_and_its_spread_is_the_standard_error():
    rng = np.random.default_rng(0)
    results = [result_of(lambda *_: rng.normal()) for _ in range(20)]
    values, errors = [r.mean() for r in results], [r.stderr() for r in results]
    assert abs(np.mean(values)) < 3 * np.mean(errors) / math.sqrt(len(values))
    assert 0.6 < np.std(values, ddof=1) / np.mean(errors) < 1.5


def test_what_knows_all_scores_one_and_copying_alone_helps_where_answers_stand_in_the_text():
    right = {(one.shots + context, choice) for one in SETS for context, choice in pairs(one)}
    assert result_of(lambda c, x: float((c, x) in right)).mean() == 1
    copies = result_of(lambda c, x: float(stands_in(x.strip(' 。”".'), c)))
    tasks = copies.details["tasks"]
    for language in LANGUAGES:
        assert tasks[f"repeat-{language}"]["value"] > 0.9 and tasks[f"reading-{language}"]["value"] > 0.5
        for name in ("definition", "opposites", "translation"):
            assert tasks[f"{name}-{language}"]["value"] == pytest.approx(0, abs=1e-12)


@given(arrays(np.float64, (4, 4), elements=st.floats(-50, 0)), arrays(np.float64, (4,), elements=st.floats(-50, 0)))
def test_accuracy_is_that_of_the_formula_and_blind_to_what_all_contexts_give(table, lift):
    table = table.round(3)  # no ties by rounding alone
    expected = 0.0
    for i in range(4):
        lifted = [table[i, j] - sum(table[:, j]) / 4 for j in range(4)]
        best = [j for j in range(4) if lifted[j] > max(lifted) - 1e-6]
        expected += (i in best) / len(best) / 4
    assert accuracy(table) == pytest.approx(expected)
    assert accuracy(table + lift.round(3)) == pytest.approx(expected)


def test_value_and_errors_are_those_of_the_definition():
    rng = np.random.default_rng(1)
    result = result_of(lambda *_: rng.normal())
    means, variances = [], []
    for group in dict.fromkeys(map(stratum, SETS)):
        a = [score for score, one in zip(result.scores["centred_acc"], SETS, strict=True) if stratum(one) == group]
        centred = [(x - 1 / 4) / (1 - 1 / 4) for x in a]
        means.append(sum(centred) / len(a))
        variances.append(np.var(centred, ddof=1) / len(a))
    assert result.mean() == pytest.approx(sum(means) / len(means))
    assert result.stderr() == pytest.approx(math.sqrt(sum(variances)) / len(means))
    assert result.details["zh"] == pytest.approx(np.mean(means[::2]))
    json.dumps(result.summary())


@pytest.mark.slow
def test_a_model_is_scored_by_its_own_likelihoods():
    """Against a plain forward pass of each text by itself."""
    model = random_model(CONFIG, scale=2.0)
    params = jax.tree.map(jnp.asarray, model.params)
    result = open_mini_core(TaskOptions(limit=36)).run(model)
    assert len(result) == 36 and abs(result.mean()) < 5 * result.stderr()
    sets = {one.id: one for one in SETS}

    @jax.jit
    def plain(tokens):
        positions = jnp.arange(CONFIG.max_seq_len)[None]
        hidden = hidden_states(
            CONFIG, params, tokens, positions, jnp.ones_like(tokens), attention=xla_attention, dtype=jnp.float32
        )
        return jax.nn.log_softmax(logits(params, hidden)[0], axis=-1)

    for record in result.records[::6]:
        one, table = sets[record["id"]], np.zeros((4, 4))
        for (i, context), (j, choice) in itertools.product(enumerate(one.contexts), enumerate(one.choices)):
            read = [TOKENIZER.bos_id, *TOKENIZER.encode(one.shots + context)]
            padded = np.zeros((1, CONFIG.max_seq_len), np.int32)
            continuation = TOKENIZER.encode(choice)
            padded[0, : len(read) + len(continuation)] = [*read, *continuation]
            logprobs = np.asarray(plain(padded))
            table[i, j] = sum(logprobs[len(read) - 1 + n, token] for n, token in enumerate(continuation))
        np.testing.assert_allclose(record["logprobs"], table, atol=1e-3)
        assert record["scores"]["centred_acc"] == accuracy(table)
