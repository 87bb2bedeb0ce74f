"""One line on stderr for work that takes longer than a moment."""

from __future__ import annotations

import sys
import time

QUIET_SECONDS = 2.0
TERMINAL_SECONDS, LOG_SECONDS = 0.2, 15.0  # between updates, on a terminal and in a log file


class Progress:
    """Prints "what: 45 %, 1.20 Mtok/s, 30 s left" from the third second on; in a terminal the line is rewritten."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, max(total, 1)
        self.started = time.monotonic()
        self.next_print = self.started + QUIET_SECONDS
        self.printed = False

    def update(self, done: int, tokens: int = 0) -> None:
        """`done` of `total` is finished, and `tokens` were made of it."""
        now = time.monotonic()
        if now < self.next_print:
            return
        terminal = sys.stderr.isatty()
        self.next_print = now + (TERMINAL_SECONDS if terminal else LOG_SECONDS)
        self.printed = True
        seconds = now - self.started
        rate = f", {tokens / seconds / 1e6:.2f} Mtok/s" if tokens else ""
        left = f", {seconds * (self.total - done) / done:.0f} s left" if done else ""
        self._print(f"{self.what}: {100 * done / self.total:.0f} %{rate}{left}", "" if terminal else "\n")

    def close(self, tokens: int = 0) -> None:
        """Prints the summary, where anything was printed before."""
        if self.printed:
            seconds = time.monotonic() - self.started
            made = f", {tokens / 1e6:.1f} M tokens, {tokens / seconds / 1e6:.2f} Mtok/s" if tokens else ""
            self._print(f"{self.what}: done in {seconds:.0f} s{made}", "\n")

    def _print(self, line: str, end: str) -> None:
        start = "\r\x1b[K" if sys.stderr.isatty() else ""
        print(start + line, end=end, file=sys.stderr, flush=True)
