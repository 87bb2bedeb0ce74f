from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind_jax.data.packing import Plan, best_fit, cached_best_fit


def rows(plan: Plan) -> list[list[int]]:
    return [plan.row(r).tolist() for r in range(plan.n_rows)]


def test_the_fullest_row_with_room_takes_the_next_sequence() -> None:
    # Descending: 7, 6, 4, 3, 2, 1. The 3 fits behind the 7 (room 3) and the 6 (room 4): the 7's row is fuller.
    plan = best_fit(np.array([1, 7, 3, 6, 4, 2]), 10)
    assert rows(plan) == [[1, 2], [3, 4], [5, 0]]


def test_sequences_of_one_length_keep_their_order() -> None:
    assert rows(best_fit(np.array([5, 5, 5, 5]), 10)) == [[0, 1], [2, 3]]


def test_no_row_has_more_than_max_items() -> None:
    assert rows(best_fit(np.array([2, 2, 2, 2, 2]), 10, max_items=2)) == [[0, 1], [2, 3], [4]]


def slow_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """What the rows hold, by looking at every row for every sequence."""
    filled: list[int] = []
    for length in sorted(lengths, reverse=True):
        candidates = [i for i, held in enumerate(filled) if held + length <= capacity]
        if candidates:
            filled[max(candidates, key=filled.__getitem__)] += length
        else:
            filled.append(length)
    return sorted(filled)


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(0, 5))
def test_the_plan_is_the_one_of_a_slow_search(lengths: list[int], max_items: int) -> None:
    plan = best_fit(np.array(lengths), 40, max_items)
    assert sorted(plan.order.tolist()) == list(range(len(lengths)))
    held = [sum(lengths[i] for i in row) for row in rows(plan)]
    assert max(held) <= 40
    if max_items:
        assert all(len(row) <= max_items for row in rows(plan))
    else:
        assert sorted(held) == slow_best_fit(lengths, 40)


def test_short_sequences_fill_rows_almost_completely() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 5000)
    plan = best_fit(lengths, 512)
    assert lengths.sum() / (plan.n_rows * 512) > 0.995


def test_a_plan_is_read_from_the_cache_and_made_again_where_that_is_damaged(tmp_path: Path) -> None:
    lengths = np.array([3, 9, 4, 4])
    first = cached_best_fit(lengths, 10, 0, tmp_path)
    (file,) = (tmp_path / "plans").iterdir()
    np.savez(file, order=np.array([0, 1, 2, 3]), ends=np.array([0, 4]))  # to see that it is what is read
    assert cached_best_fit(lengths, 10, 0, tmp_path).n_rows == 1
    for other in (cached_best_fit(lengths, 11, 0, tmp_path), cached_best_fit(lengths, 10, 1, tmp_path)):
        assert other.n_rows > 1
    file.write_bytes(file.read_bytes()[:100])
    assert rows(cached_best_fit(lengths, 10, 0, tmp_path)) == rows(first)
    assert rows(cached_best_fit(lengths, 10, 0, tmp_path)) == rows(first)


def test_a_plan_with_a_flipped_bit_is_made_again(tmp_path: Path) -> None:
    lengths, rng = np.arange(1, 50), random.Random(0)
    plan = cached_best_fit(lengths, 64, 0, tmp_path)
    (file,) = (tmp_path / "plans").iterdir()
    content = file.read_bytes()
    # The last part is the directory of a zip file, with the flags that zipfile takes exception to.
    for position in [*(rng.randrange(len(content)) for _ in range(200)), *range(len(content) - 200, len(content))]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        again = cached_best_fit(lengths, 64, 0, tmp_path)
        assert again.order.tolist() == plan.order.tolist() and again.ends.tolist() == plan.ends.tolist()
