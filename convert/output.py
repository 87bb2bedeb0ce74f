"""Output directories and files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minimind_jax.errors import UserError
from minimind_jax.workdir import is_workdir


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Yields a temporary sibling of `out`; renames it to `out` at the end, removes it after an error.

    An `out` that is there already (the caller has decided that it may go) is replaced at the very end.

    Raises:
      UserError: the place cannot be written.
    """
    out = out.resolve()  # "." has no name
    temporary, old = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
    except OSError as e:
        raise UserError(f"{out} cannot be created: {e.strerror}") from None
    try:
        yield temporary
        _replace(out, temporary, old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(out: Path, new: Path, old: Path) -> None:
    try:
        if out.exists():
            out.rename(old)
        new.rename(out)
    except OSError as e:
        if old.exists():
            old.rename(out)
        raise UserError(f"{out} cannot be created: {e.strerror}") from None
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """Yields a temporary name beside `out`; renames it to `out` at the end, removes it after an error.

    An `out` that is there already is replaced at the very end; a link is written through.

    Raises:
      UserError: the place cannot be written.
    """
    out = out.resolve()
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as e:
        raise UserError(f"{out} cannot be created: {e.strerror}") from None
    try:
        yield temporary
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def check_replaceable(out: Path, force: bool) -> None:
    """Raises UserError unless `out` is free, or `force` is given and it is an exported model or empty."""
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise UserError(f"{out} exists already: name another directory, or replace it with --force")
    exported = out.is_dir() and (out / "config.json").is_file() and not is_workdir(out)
    if out.is_symlink() or not out.is_dir() or not (exported or not any(out.iterdir())):
        raise UserError(f"{out} is not an exported model, so --force does not replace it: name another directory")
