"""The process beside process 0 in which all processes of a run meet; `processes.joined` starts it, as a script.

It keeps a blackboard: what one process posts, all get, in one order. A process that dies closes its connection, however
it dies, and the others know within milliseconds; a machine that is gone answers no probes for half a minute.

It hosts JAX's coordination service too. Inside process 0, where JAX puts it, the service would end with process 0 and
make JAX abort all others at once, each with a page of C++.

Every line of a connection is a JSON list: [NUM_PROCESSES, PROCESS_ID, HOST] at first, then [KEY, VALUE] for a post,
[] on leaving. Who does not belong to the run, or comes a second time, is hung up on.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import Any

LINGER_SECONDS = 60.0  # after process 0 has ended, for the others to hear of it
NEVER_SECONDS = 10**6  # JAX's own heartbeats: the blackboard is quicker, and needs no page of C++ to say so
LEAVE_SECONDS = 300  # for all processes to come to the end of the run
LEAVING = b"[]\n"


class Blackboard:
    def __init__(self, num_processes: int):
        self._num_processes = num_processes
        self._lock = threading.Lock()
        self._posts: list[bytes] = []
        self._present: dict[int, socket.socket] = {}
        self._ever: set[int] = set()
        self.empty = threading.Event()  # nobody is connected
        self.empty.set()

    def post(self, key: str, value: Any) -> None:
        self._publish(to_line(key, value))

    def serve(self, listener: socket.socket) -> None:
        """Takes connections until the listener is closed."""
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self._attend, args=(connection,), daemon=True).start()

    def _attend(self, connection: socket.socket) -> None:
        watch_peer(connection)
        with connection, connection.makefile("rb") as lines:
            try:
                num_processes, index, host = json.loads(lines.readline(1024))
            except (OSError, ValueError, TypeError):
                return
            with self._lock:
                if num_processes != self._num_processes or index in self._ever:
                    return
                self._ever.add(index)
                self._present[index] = connection
                self.empty.clear()
                for line in self._posts:
                    connection.sendall(line)
            self.post(f"joined/{index}", host)
            leaves = False
            with suppress(OSError):
                for line in lines:
                    if leaves := line == LEAVING:
                        break
                    self._publish(line)
            if not leaves:
                self.post(f"died/{index}", None)
            with self._lock:
                del self._present[index]
                if not self._present:
                    self.empty.set()

    def _publish(self, line: bytes) -> None:
        with self._lock:
            self._posts.append(line)
            for member in self._present.values():
                with suppress(OSError):
                    member.sendall(line)


def to_line(key: str, value: Any) -> bytes:
    return json.dumps([key, value]).encode() + b"\n"


def watch_peer(connection: socket.socket) -> None:
    """Makes the connection fail after half a minute without an answer of the other machine."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}.items():
        if hasattr(socket, name):  # not every system has all of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def main(port: int, num_processes: int) -> None:
    """Serves until process 0 ends, which closes our stdin, and until the others have heard of it.

    Prints a line of JSON: null, or why there is no blackboard.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # meant for process 0, which tells the others
        signal.signal(number, signal.SIG_IGN)
    from jaxlib import _jax  # not all of JAX, which takes seconds

    try:
        listener = _listen(port)
        with _listen(0) as free:
            service_port = free.getsockname()[1]
        service = _jax.get_distributed_runtime_service(
            f"[::]:{service_port}", num_processes, heartbeat_timeout=NEVER_SECONDS, shutdown_timeout=LEAVE_SECONDS
        )
    except (RuntimeError, OSError) as e:
        code = getattr(e, "errno", None)
        print(json.dumps(os.strerror(code) if code else str(e).partition("\n")[0]), flush=True)
        return
    board = Blackboard(num_processes)
    board.post("service", service_port)
    threading.Thread(target=board.serve, args=(listener,), daemon=True).start()
    print("null", flush=True)
    sys.stdin.read()
    listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept; the port is free for the next run
    listener.close()
    sys.stdout.close()
    board.empty.wait(LINGER_SECONDS)
    del service
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
