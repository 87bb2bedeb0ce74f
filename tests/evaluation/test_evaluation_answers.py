"""Repetition and length of answers, by hand-counted examples."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimind_jax.evaluation import describe_answers, repetition_rate


@pytest.mark.parametrize(
    ("ids", "rate"),
    [
        ([], 0.0),
        ([1, 2, 3], 0.0),
        ([1, 2, 3, 4], 0.0),
        ([1, 1, 1, 1], 0.0),  # one 4-gram, which occurs once
        ([1, 1, 1, 1, 1], 1 / 2),
        ([7] * 13, 9 / 10),
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5),  # 1234 2341 3412 4123 1234
        ([1, 2, 3, 4, 5, 1, 2, 3, 5], 0.0),
    ],
)
def test_repetition_rate(ids, rate):
    assert repetition_rate(ids) == pytest.approx(rate)


def test_other_lengths_of_n_grams():
    assert repetition_rate([1, 2, 1, 2, 3], n=1) == pytest.approx(2 / 5)
    assert repetition_rate([1, 2, 1, 2, 3], n=2) == pytest.approx(1 / 4)
    assert repetition_rate([1, 2, 1, 2, 3], n=3) == 0


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 5))
def test_repetition_rate_counts_the_n_grams_seen_before(ids, n):
    seen, repeated = [], 0
    for i in range(len(ids) - n + 1):
        repeated += ids[i : i + n] in seen
        seen.append(ids[i : i + n])
    assert repetition_rate(ids, n) == pytest.approx(repeated / len(seen) if seen else 0)


def test_means_over_answers():
    described = describe_answers([[1] * 5, [1, 2], []], max_new_tokens=5)
    assert described == pytest.approx({"repetition": 1 / 6, "length": 7 / 3, "unfinished": 1 / 3})
    assert describe_answers([[1] * 5], max_new_tokens=6)["unfinished"] == 0
