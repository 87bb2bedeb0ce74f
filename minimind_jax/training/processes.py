"""Several processes of one run: they join, agree, and end together.

Every function here also works in a process that trains alone, and then costs nothing. What is called "by all
processes" must be called by all of them in the same order. None of it touches a device: collectives time out, or hang,
where one process comes much later than the others, waiting here does neither.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax

from minimind_jax.config import DistributedConfig
from minimind_jax.errors import UserError, explain, first_line
from minimind_jax.training import blackboard
from minimind_jax.training.join import Place, choose_devices, find_place

T = TypeVar("T")

_JOIN_SECONDS = 300.0  # between the first process and the last one; nodes start minutes apart
_TELL_SECONDS = 15.0  # until process 0 says whom it is waiting for
_NEWS_SECONDS = 3.0  # an error may be the echo of another process's end, the news of which is on its way


@contextmanager
def joined(config: DistributedConfig) -> Iterator[None]:
    """Runs its block as one of several processes, if it is one.

    Within it only process 0 prints. However a process ends, by an error or a kill, all others end too, with a sentence
    that says why and an exit code that is not 0. This leaves no time to unwind: a save under way is torn off.

    Raises UserError where the others cannot be found.
    """
    global _peers
    place = find_place(config)
    if place is None:
        yield
        return
    board = _start_blackboard(place) if place.index == 0 else None
    peers = _Peers(place)
    try:
        peers.connect()
        _peers = peers
        _initialize_jax(peers)
        with _quiet() if place.index else contextlib.nullcontext():
            yield
            barrier()
            peers.ignore_deaths()
            jax.distributed.shutdown()
    except BaseException as e:
        peers.fail(e)
    peers.leave()
    _peers = None
    if board:
        board.communicate()  # until the port is free for the next run


def first() -> bool:
    """Whether this is the process that prints and writes files."""
    return _peers is None or _peers.index == 0


def count() -> int:
    return _peers.count if _peers else 1


def barrier() -> None:
    """Waits until all processes are here. Called by all."""
    gather(None)


def gather(value: Any) -> list[Any]:
    """The values (of JSON's types) of all processes, by index. Called by all."""
    if _peers is None:
        return [value]
    key = _peers.next_key()
    _peers.post(f"{key}/{_peers.index}", value)
    return [_peers.wait(f"{key}/{i}") for i in range(_peers.count)]


def from_first(decide: Callable[[], T]) -> T:
    """What `decide()` returns in process 0, in all processes: of JSON's types. Called by all."""
    if _peers is None:
        return decide()
    key = _peers.next_key()
    if _peers.index == 0:
        _peers.post(key, decide())
    return _peers.wait(key)


def check_same(values: dict[str, Any]) -> None:
    """Raises UserError, in all processes, unless all have the same values. Called by all."""
    everyone = gather(values)
    for index, others in enumerate(everyone):
        wrong = [key for key in values if others.get(key) != everyone[0].get(key)]
        if wrong:
            said = ", ".join(
                f"{key} is {everyone[0].get(key)!r} in process 0 and {others.get(key)!r} in process {index}"
                for key in wrong
            )
            raise UserError(f"{said}: start all processes by the same command, on the same data and models")


def share(directory: Path) -> bool:
    """Whether all processes see the same directory under that name. Called by all."""
    return all(gather(_sees(directory)))


@contextmanager
def first_alone(directory: Path) -> Iterator[None]:
    """Process 0 goes through the block before the processes that share `directory`: they find what it has left there.

    Processes with a directory of their own do not wait. Called by all.
    """
    if _peers is None:
        yield
        return
    waits, key = _sees(directory) and _peers.index > 0, _peers.next_key()
    if waits:
        _peers.wait(key)
    yield
    if _peers.index == 0:
        _peers.post(key, None)


def _sees(directory: Path) -> bool:
    """Whether this process sees what process 0 has just put into its `directory`."""

    def leave_mark() -> str:
        mark = directory / f".shared-{secrets.token_hex(8)}"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError:
            pass  # whoever needs the directory will say so
        return mark.name

    mark = directory / from_first(leave_mark)
    seen = mark.exists()
    barrier()
    if first():
        with contextlib.suppress(OSError):
            mark.unlink()
    return seen


class Stop:
    """A request to stop, by a signal to any process, and the step after which all processes do.

    Processes dispatch steps at slightly different times, none waits for the others, and each step needs all of them. A
    request therefore makes each tell the last step that it may have begun, by a thread of its own, for its loop may be
    waiting for the device; the largest of these is the step at which all stop. Without a request a step costs no more
    than a look at a flag.
    """

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._lock = threading.Lock()
        self._next = 0  # the step that may be under way
        self._held = False
        self._agreed: int | None = None
        self._known = threading.Event()

    def request(self) -> None:
        """May be called from a signal handler."""
        self._requested.set()

    def start(self, step: int) -> None:
        """The loop begins after `step`. Called by all processes, once."""
        self._next = step + 1
        if _peers:
            threading.Thread(target=self._tell, args=(_peers,), daemon=True).start()
            threading.Thread(target=self._agree, args=(_peers,), daemon=True).start()

    def after(self, step: int) -> bool:
        """Whether `step`, which was just dispatched, is the last one. Called by all processes, for every step."""
        if _peers is None:
            return self._requested.is_set()
        with self._lock:
            if not self._held:
                self._next = step + 1
                return False
        self._known.wait()
        return step == self._agreed

    def _tell(self, peers: _Peers) -> None:
        self._requested.wait()
        peers.post("stop", None)

    def _agree(self, peers: _Peers) -> None:
        peers.wait("stop")
        with self._lock:
            self._held = True
        peers.post(f"stop/{peers.index}", self._next)
        self._agreed = max(peers.wait(f"stop/{i}") for i in range(peers.count))
        self._known.set()


class _Peers:
    """This process's connection to the blackboard."""

    def __init__(self, place: Place):
        self.place, self.index, self.count = place, place.index, place.count
        self._posts: dict[str, Any] = {}
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._ending = threading.Lock()
        self._keys = itertools.count()
        self._failing = self._deaths_ignored = False
        self._socket: socket.socket | None = None
        self._stderr = sys.stderr

    # --- Joining ---

    def connect(self) -> None:
        """Returns when all processes are there. Raises UserError if some do not come."""
        deadline = time.monotonic() + _JOIN_SECONDS
        where = f"{self.place.host}:{self.place.port}"
        while not self._socket:
            try:
                connection = socket.create_connection((self.place.host, self.place.port), timeout=10)
                connection.sendall(json.dumps([self.count, self.index, socket.gethostname()]).encode() + b"\n")
                lines = connection.makefile("rb")
                if hello := lines.readline():
                    connection.settimeout(None)
                    blackboard.watch_peer(connection)
                    self._socket = connection
                    self._take(hello)
                    threading.Thread(target=self._read, args=(lines,), daemon=True).start()
                    break
                reason = "it belongs to another run"
            except OSError as e:
                reason = e.strerror or first_line(e)
            if time.monotonic() > deadline:
                raise UserError(
                    f"{self.place}: process 0 is not to be reached at {where} within {_JOIN_SECONDS:.0f} s ({reason}): "
                    "start all processes with the same distributed.coordinator and num_processes"
                )
            time.sleep(0.5)
        told = False
        while missing := [i for i in range(self.count) if not self.posted(f"joined/{i}")]:
            waited = time.monotonic() - deadline + _JOIN_SECONDS
            names = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            if waited > _JOIN_SECONDS:
                raise UserError(
                    f"{len(missing)} of {self.count} processes (process_id {names}) did not come to {where} within "
                    f"{_JOIN_SECONDS:.0f} s: start all of them"
                )
            if waited > _TELL_SECONDS and self.index == 0 and not told:
                print(f"waiting for process {names} of {self.count} at {where}", file=sys.stderr)
                told = True
            with self._changed:
                self._changed.wait(1.0)

    def host(self, index: int) -> str:
        return self._posts.get(f"joined/{index}", "an unknown host")

    # --- The blackboard ---

    def next_key(self) -> str:
        return str(next(self._keys))

    def post(self, key: str, value: Any) -> None:
        if self._socket:
            with self._sending, contextlib.suppress(OSError):  # `_read` notices a lost connection
                self._socket.sendall(blackboard.to_line(key, value))

    def posted(self, key: str) -> bool:
        with self._changed:
            return key in self._posts

    def wait(self, key: str, timeout: float | None = None) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: key in self._posts, timeout)
            return self._posts.get(key)

    def _read(self, lines: Any) -> None:
        with contextlib.suppress(OSError):
            for line in lines:
                self._take(line)
        if not self._deaths_ignored:
            self._end(
                f"error: {self.place} has lost its connection to process 0 ({self.place.host}:{self.place.port}): "
                "the same command continues from the last checkpoint"
            )

    def _take(self, line: bytes) -> None:
        key, value = json.loads(line)
        kind, _, index = key.partition("/")
        if kind in ("died", "failed") and int(index) != self.index and not (self._failing or self._deaths_ignored):
            other = f"process {index} of {self.count} (on {self.host(int(index))})"
            if kind == "failed":
                self._end(f"error: {other} stopped the run: {value}")
            self._end(
                f"error: {other} has died (killed, out of memory, or its machine failed), and the run cannot go on "
                "without it: the same command continues from the last checkpoint"
            )
        with self._changed:
            self._posts[key] = value
            self._changed.notify_all()

    # --- Ending ---

    def ignore_deaths(self) -> None:
        """The run is complete: nobody needs the others any more."""
        self._deaths_ignored = True

    def leave(self) -> None:
        assert self._socket
        with self._sending, contextlib.suppress(OSError):
            self._socket.sendall(blackboard.LEAVING)
            self._socket.shutdown(socket.SHUT_WR)

    def fail(self, error: BaseException) -> NoReturn:
        """Ends this process because of `error`, and tells the others to end as well."""
        line, code = explain(error) or ("", 1)
        if not line:
            time.sleep(_NEWS_SECONDS)
        self._failing = True
        self.post(
            f"failed/{self.index}", line.removeprefix("error: ") or f"{type(error).__name__}: {first_line(error)}"
        )
        if self._socket:
            self.wait(f"failed/{self.index}", timeout=5)  # it comes back to us when it is on its way to the others
        if not line:
            traceback.print_exception(error, file=self._stderr)
        self._end(line, code)

    def _end(self, line: str, code: int = 1) -> NoReturn:
        """Exits at once: what JAX does at exit needs the others, and its threads may hang in a collective."""
        with self._ending:
            with contextlib.suppress(OSError, ValueError):
                if sys.stdout.isatty():
                    sys.stdout.write("\x1b[?25h")  # a progress bar may have hidden the cursor
                sys.stdout.flush()
                if line:
                    print(line, file=self._stderr, flush=True)
            os._exit(code)


_peers: _Peers | None = None


def _start_blackboard(place: Place) -> subprocess.Popen[str]:
    """Raises UserError if the port cannot be had."""
    process = subprocess.Popen(
        [sys.executable, blackboard.__file__, str(place.port), str(place.count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        start_new_session=True,  # Ctrl-C is for process 0
    )
    assert process.stdout
    problem = json.loads(process.stdout.readline() or '"it does not start"')
    if problem:
        raise UserError(
            f"process 0 cannot listen on port {place.port} ({problem}): take another distributed.coordinator"
        )
    return process


def _initialize_jax(peers: _Peers) -> None:
    # Its handler of SIGTERM knows nothing of Ctrl-C, and would be in the way of ours.
    jax.config.update("jax_enable_preemption_service", False)
    chosen = "JAX_LOCAL_DEVICE_IDS" in os.environ
    jax.distributed.initialize(
        f"{peers.place.host}:{peers.wait('service')}",
        peers.count,
        peers.index,
        local_device_ids=None if chosen else [],  # [] = all; left out, JAX takes a single GPU under Slurm
        heartbeat_timeout_seconds=blackboard.NEVER_SECONDS,
        # Process 0 cannot be told to start no service: this one has nobody to serve.
        coordinator_bind_address="127.0.0.1:0",
    )
    choose_devices([peers.host(i) for i in range(peers.count)], peers.index)


@contextmanager
def _quiet() -> Iterator[None]:
    with (
        open(os.devnull, "w", encoding="utf-8", errors="replace") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
