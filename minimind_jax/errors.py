"""Errors that a user can mend: one clear sentence and a non-zero exit, never a traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Says what is wrong, where (path, line, key) and how to mend it."""


def first_line(error: Exception) -> str:
    """What an error of a library says, without the pages that may follow."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def user_errors() -> Iterator[None]:
    """Wraps a command's `main`: prints a `UserError` as one line on stderr and exits with 1."""
    try:
        yield
    except UserError as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)  # 128 + SIGINT, as shells have it
    except BrokenPipeError:
        sys.exit(1)
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" while writing {e.filename}" if e.filename else ""
        sys.exit(f"error: the disk is full{where}: free some space, then run the same command again")
