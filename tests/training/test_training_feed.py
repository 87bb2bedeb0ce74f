"""The thread that builds batches: order, errors, and that it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from minimind_jax.training.feed import Feed


@pytest.fixture(autouse=True)
def no_leaked_thread() -> Iterator[None]:
    before = threading.enumerate()
    yield
    assert [t for t in threading.enumerate() if t not in before] == []


def make_batch(step: int) -> dict:
    return {"step": step}


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (3, 5), (4, 4), (5, 2)])
def test_batches_come_in_order_and_end(start: int, stop: int):
    with Feed(make_batch, start, stop) as feed:
        assert [batch["step"] for batch in feed] == list(range(start, stop))


def test_it_builds_ahead_but_not_far():
    built: list[int] = []

    def counting(step: int) -> dict:
        built.append(step)
        return make_batch(step)

    with Feed(counting, 0, 100) as feed:
        batches = iter(feed)
        assert next(batches)["step"] == 0
        deadline = time.monotonic() + 5
        while len(built) < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        assert built == [0, 1, 2, 3]  # one taken, two ready, one in the thread's hands


def test_an_error_arrives_after_the_batches_before_it():
    def failing(step: int) -> dict:
        if step == 2:
            raise ValueError("row 2 is broken")
        return make_batch(step)

    seen = []
    with pytest.raises(ValueError, match="row 2 is broken"), Feed(failing, 0, 9) as feed:
        for batch in feed:
            seen.append(batch["step"])
    assert seen == [0, 1]


def test_leaving_while_the_thread_waits_for_room():
    with Feed(make_batch, 0, 10**9) as feed:
        next(iter(feed))
        time.sleep(0.05)  # the queue is full now
    # The fixture sees that the thread is gone.


def test_leaving_while_a_batch_is_being_built():
    building = threading.Event()

    def slow(step: int) -> dict:
        building.set()
        time.sleep(0.1)
        return make_batch(step)

    with Feed(slow, 0, 10**9):
        building.wait(5)


def test_leaving_with_an_unread_error():
    def failing(step: int) -> dict:
        raise OSError("gone")

    with Feed(failing, 0, 9):
        time.sleep(0.02)


def test_the_loops_own_error_is_not_replaced():
    with pytest.raises(KeyError, match="mine"), Feed(make_batch, 0, 10**9) as feed:
        for _ in feed:
            raise KeyError("mine")
