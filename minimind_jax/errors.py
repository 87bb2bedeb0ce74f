"""Errors that a user can mend: one clear sentence and a non-zero exit, never a traceback."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Says what is wrong, where (path, line, key) and how to mend it."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, without the pages that may follow."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def explain(error: BaseException) -> tuple[str, int] | None:
    """The line for stderr and the exit code of an error that is no bug of ours, else None."""
    if isinstance(error, UserError):
        return f"error: {error}", 1
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130  # 128 + SIGINT, as shells have it
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" while writing {error.filename}" if error.filename else ""
        return f"error: the disk is full{where}: free some space, then run the same command again", 1
    return None


@contextmanager
def user_errors() -> Iterator[None]:
    """Wraps a command's `main`: prints an error that `explain` knows as one line on stderr, and exits.

    Output may hold any character, whatever the terminal can show.
    """
    _accept_any_terminal()
    try:
        _check_arguments()
        yield
    except BrokenPipeError:
        sys.exit(1)
    except (UserError, KeyboardInterrupt, OSError) as e:
        explained = explain(e)
        if explained is None:
            raise
        line, code = explained
        if code == 1:
            sys.exit(line)  # Python prints it on stderr
        print(line, file=sys.stderr)
        sys.exit(code)


def _accept_any_terminal() -> None:
    """Characters that stdout's encoding lacks become question marks, as stderr escapes them by itself.

    Input is UTF-8 where the locale knows ASCII only; bytes that are no text are an error, not lone surrogates.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        encoding = codecs.lookup(sys.stdin.encoding).name
        sys.stdin.reconfigure(encoding="utf-8" if encoding == "ascii" else encoding, errors="strict")


def _check_arguments() -> None:
    """Raises UserError for names and texts that Python could not decode: no library of ours takes such."""
    for argument in (*sys.argv, os.getcwd()):
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{argument!r} is no text in the encoding of this locale ({sys.getfilesystemencoding()}): set "
                "PYTHONUTF8=1 if it is UTF-8, else give it another name"
            ) from None
