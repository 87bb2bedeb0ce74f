"""Means, standard errors and paired differences, against formulas and resampling."""

from __future__ import annotations

import json
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimind_jax.evaluation import TaskResult


def result(scores, groups=None, weights=None, details=None, ids=None, task="t"):
    scores = np.array(scores, np.float64)
    records = [{"id": i} for i in (ids or range(len(scores)))]
    weights = {} if weights is None else {"acc": np.array(weights)}
    return TaskResult(
        task, {"acc": scores}, {"acc": 0.25}, "acc", groups or [""] * len(scores), records, details or {}, weights
    )


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=50))
def test_error_of_right_and_wrong(scores):
    p = statistics.fmean(scores)
    assert result(scores).mean() == pytest.approx(p)
    assert result(scores).stderr() == pytest.approx(math.sqrt(p * (1 - p) / len(scores)))


@given(st.lists(st.floats(0.01, 0.99), min_size=2, max_size=50))
def test_error_of_other_scores(scores):
    assert result(scores).stderr() == pytest.approx(statistics.stdev(scores) / math.sqrt(len(scores)))


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=2, max_size=50))
def test_differences_are_paired(pairs):
    a, b = zip(*pairs, strict=True)
    found = result(a).difference(result(b))
    assert found.value == pytest.approx(statistics.fmean(a) - statistics.fmean(b))
    by_item = [x - y for x, y in pairs]
    assert found.stderr == pytest.approx(statistics.stdev(by_item) / math.sqrt(len(pairs)))
    assert found.is_clear == (abs(found.value) > 2 * found.stderr)


def test_what_is_hard_for_both_does_not_blur_the_difference():
    easy, hard = [1.0] * 50, [0.0] * 50
    a, b = result([*easy, *hard]), result([*easy, 1.0, *hard[1:]])
    assert b.difference(a).stderr == pytest.approx(0.01)
    assert math.hypot(a.stderr(), b.stderr()) > 0.07


def test_error_of_a_weighted_sum_over_strata_is_that_of_drawing_items_anew():
    rng = np.random.default_rng(0)
    groups = ["a"] * 40 + ["b"] * 160
    weights = np.where(np.array(groups) == "a", 0.5 / 40, 0.5 / 160)
    scores = np.where(np.array(groups) == "a", rng.random(200) < 0.2, rng.random(200) < 0.9).astype(float)
    own = result(scores, groups, weights)
    assert own.mean() == pytest.approx((scores[:40].mean() + scores[40:].mean()) / 2)
    drawn = [(rng.choice(scores[:40], 40).mean() + rng.choice(scores[40:], 160).mean()) / 2 for _ in range(4000)]
    assert own.stderr() == pytest.approx(np.std(drawn), rel=0.06)
    assert own.difference(result(np.zeros(200), groups, weights)).stderr == pytest.approx(own.stderr())


def test_error_of_a_ratio_is_that_of_drawing_documents_anew():
    rng = np.random.default_rng(0)
    size = rng.integers(20, 2000, 300).astype(float)
    rate = 1 + 0.3 * rng.standard_normal(300)  # bits per byte of each
    own = result(rate, weights=size / size.sum())
    assert own.mean() == pytest.approx((rate * size).sum() / size.sum())
    drawn = []
    for _ in range(3000):
        i = rng.integers(0, 300, 300)
        drawn.append((rate[i] * size[i]).sum() / size[i].sum())
    assert own.stderr() == pytest.approx(np.std(drawn), rel=0.07)


def test_a_summary_that_is_no_mean():
    own = result([0, 1, 1, 1], details={"value": 0.1, "stderr": 0.02})
    assert (own.mean(), own.stderr()) == (0.1, 0.02)
    assert own.difference(result([0, 1, 1, 0], details={"value": 0.3})).value == pytest.approx(-0.2)


def test_other_items_are_not_compared():
    a = result([0, 1, 1])
    for other in (
        result([0, 1]),
        result([0, 1, 1], ids=[0, 1, 3]),
        result([0, 1, 1], groups=["x", "", ""]),
        result([0, 1, 1], task="u"),
        result([0, 1, 1], weights=[0.2, 0.2, 0.6]),
    ):
        with pytest.raises(ValueError, match="same items"):
            a.difference(other)
    with pytest.raises(ValueError, match="same items"):
        a.difference(a, "f1")


def test_groups_and_summary_are_json():
    own = result([1, 0, 1], groups=["zh", "en", "zh"])
    assert own.by_group() == {"zh": (1.0, 0.0, 2), "en": (0.0, 0.0, 1)}
    summary = json.loads(json.dumps(own.summary(), allow_nan=False))
    assert summary["metrics"]["acc"]["chance"] == 0.25
    assert summary["groups"]["zh"] == {"value": 1.0, "stderr": 0.0, "items": 2}
    assert json.loads(json.dumps(result([0.5]).summary(), allow_nan=False))["metrics"]["acc"]["stderr"] is None


@pytest.mark.parametrize("change", [{"groups": ["a"]}, {"weights": [1.0]}])
def test_lengths_that_differ_are_a_mistake(change):
    with pytest.raises(ValueError, match="items"):
        result([0, 1], **change)
