"""Whether the files of a checkpoint can be read and are still what was written.

checkpoints/STEP/checksums.sha256    a line a file, as sha256sum has it: `sha256sum -c` reads it too
                                     the last line is a comment with the hash of the lines above
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import jax
import tensorstore

from minimind_jax.errors import UserError, first_line

CHECKSUMS = "checksums.sha256"
_END = "# "
_THREADS = 8
_NOT_THE_FILES = (MemoryError, jax.errors.JaxRuntimeError)  # raised while reading, these are about memory


class DamagedCheckpointError(UserError):
    """A file of a checkpoint is missing, cannot be read, or is not what was written."""


def write_checksums(checkpoint: Path) -> None:
    """Lists the files of all items, in a file that appears whole or not at all."""
    files = sorted(path for path in checkpoint.glob("*/**/*") if path.is_file())
    with ThreadPoolExecutor(_THREADS) as pool:
        names = [file.relative_to(checkpoint).as_posix() for file in files]
        lines = "".join(f"{value}  {name}\n" for value, name in zip(pool.map(_hash, files), names, strict=True))
    temporary = checkpoint / f".{CHECKSUMS}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(f"{lines}{_END}{_hash_text(lines)}\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(checkpoint / CHECKSUMS)


def check(checkpoint: Path, items: Collection[str]) -> None:
    """Compares the files with their checksums; reads them, where a checkpoint is older than these.

    One process of several can do it alone.

    Raises:
      DamagedCheckpointError: a file is missing, cannot be read, or is not what was written.
    """
    try:
        if not _match(checkpoint, items):
            for item in items:
                _try(checkpoint / item)
    except _NOT_THE_FILES:
        raise
    except Exception as e:  # of the operating system, tensorstore or JSON: each has several of its own
        raise DamagedCheckpointError(f"checkpoint {checkpoint} is damaged ({_reason(e)})") from None


@contextmanager
def reading(checkpoint: Path) -> Iterator[None]:
    """Wraps the reading of a checkpoint that `check` has passed. Raises UserError for whatever fails all the same."""
    try:
        yield
    except (UserError, *_NOT_THE_FILES):
        raise
    except Exception as e:
        raise UserError(
            f"checkpoint {checkpoint} is whole, but not of the model that {checkpoint.parents[1] / 'config.json'} "
            f"describes, or of other versions of the libraries ({_reason(e)})"
        ) from None


def _try(item: Path) -> None:
    """Reads an item as Orbax stores it, array by array.

    Orbax itself reads all at once, and where one fails the others print tracebacks after it has returned.
    """
    if item.name == "meta":
        json.loads((item / "metadata").read_text("utf-8"))
        return
    if (item / "_sharding").exists():  # not of numpy arrays
        json.loads((item / "_sharding").read_text("utf-8"))
    metadata = json.loads((item / "_METADATA").read_text("utf-8"))
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{item.absolute()}/"}}
    for entry in metadata["tree_metadata"].values():
        if not entry["value_metadata"]["skip_deserialize"]:  # of empty dicts
            name = ".".join(key["key"] for key in entry["key_metadata"])
            driver = "zarr3" if metadata["use_zarr3"] else "zarr"
            array = tensorstore.open({"driver": driver, "kvstore": {**store, "path": f"{name}/"}}, open=True).result()
            array.read().result()


def _match(checkpoint: Path, items: Collection[str]) -> bool:
    """Compares the files of these items with the list; False where there is none."""
    try:
        content = (checkpoint / CHECKSUMS).read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return False
    lines, _, own = content.rpartition(_END)
    if own != f"{_hash_text(lines)}\n":
        raise _NotAsWritten(f"{CHECKSUMS} is not as it was written")
    entries = [(line[:64], line[66:]) for line in lines.splitlines()]
    entries = [(value, name) for value, name in entries if name.split("/")[0] in items]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda entry: _hash(checkpoint / entry[1]), entries)
        for (expected, name), actual in zip(entries, found, strict=True):
            if actual != expected:
                raise _NotAsWritten(f"{name} is not as it was written")
    return True


class _NotAsWritten(Exception):
    pass


def _hash(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    return first_line(error).split(" [tensorstore_spec=")[0]
