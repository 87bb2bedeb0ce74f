"""Batches, built and put on the devices by a thread while the step before still runs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from minimind_jax.objectives import Batch

_DEPTH = 2  # batches ahead: one being consumed by the device, one ready


class Feed:
    """Iterates over the batches of steps [start, stop). A context manager: leaving it stops the thread."""

    def __init__(self, make_batch: Callable[[int], Batch], start: int, stop: int):
        self._queue: queue.Queue[Batch | BaseException | None] = queue.Queue(_DEPTH)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, args=(make_batch, start, stop), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: Any) -> None:
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue

    def _produce(self, make_batch: Callable[[int], Batch], start: int, stop: int) -> None:
        try:
            for step in range(start, stop):
                if self._closed.is_set():
                    return
                self._queue.put(make_batch(step))
        except BaseException as e:  # handed to the consumer, which raises it in the main thread
            self._queue.put(e)
            return
        self._queue.put(None)
