"""Writes the corpus: streaming, atomic, never over somebody's files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from random import Random

from minimind_jax.data.generate.records import Record, conversations, documents, pairs, questions
from minimind_jax.errors import UserError

MANIFEST = "generated.json"
# Raised whenever the same seed and sizes give other files.
VERSION = 2
_MAX_VAL_RECORDS = 1000


@dataclass(frozen=True)
class Sizes:
    """How many records to write: 0 leaves a kind out. `questions` counts per family and language."""

    documents: int = 14000
    conversations: int = 12000
    pairs: int = 3000
    questions: int = 20

    def __post_init__(self) -> None:
        for name, count in asdict(self).items():
            if count < 0:
                raise UserError(
                    f"--{name} {count}: a count cannot be negative; give a number of records, or 0 for none"
                )
        if not any(asdict(self).values()):
            raise UserError("all counts are 0, so there is nothing to write: give at least one above 0")
        if self.questions > MAX_QUESTIONS:
            raise UserError(
                f"--questions {self.questions}: the smallest family has only enough held-out operands for "
                f"{MAX_QUESTIONS} different questions; ask for no more"
            )


# Checked by a test: each family has at least this many different held-out questions in each language.
MAX_QUESTIONS = 40


def generate(
    out: Path, seed: int = 0, sizes: Sizes | None = None, force: bool = False, log: Callable[[str], None] = print
) -> None:
    """Writes the corpus into the directory `out`, which is made if need be.

    A directory that already holds this very corpus is left as it is; files that are missing from it are made again.
    Any other existing file of these names is an error unless `force`. Files appear complete or not at all. Memory does
    not grow with the sizes.

    Raises:
        UserError: `out` is no directory or cannot be written; files would be overwritten.
    """
    settings = {"generator": "minimind_jax.data.generate", "version": VERSION, "seed": seed, **asdict(sizes or Sizes())}
    wanted = _streams(seed, sizes or Sizes())
    _make_directory(out)
    earlier = _read_manifest(out)
    same = {key: earlier.get(key) for key in settings} == settings
    present = [name for name in wanted if os.path.lexists(out / name)]
    kept = {}
    if same and not force:
        kept = {name: earlier["files"][name] for name in present if _matches(out / name, earlier["files"].get(name))}
    changed = [name for name in present if name not in kept]
    if changed and not force:
        raise UserError(
            f"{out} already has {', '.join(changed)}, not as this command would write: "
            "choose another --out, or add --force to overwrite"
        )
    if len(kept) == len(wanted):
        log(f"already generated: {out}")
        return
    _write(out, settings, {name: stream for name, stream in wanted.items() if name not in kept}, kept, log)


def _streams(seed: int, sizes: Sizes) -> dict[str, Iterator[Record]]:
    """The records of each file that is to be written. Every file has a random stream of its own."""

    def rng(name: str) -> Random:
        # A string seed is hashed with SHA-512 by Random itself: the same everywhere.
        return Random(f"minimind_jax.data.generate {VERSION} {seed} {name}")

    streams: dict[str, Iterator[Record]] = {}
    kinds = (
        ("pretrain", documents, sizes.documents),
        ("sft", conversations, sizes.conversations),
        ("dpo", pairs, sizes.pairs),
    )
    for kind, records, count in kinds:
        if count:
            n_val = max(1, min(count // 20, _MAX_VAL_RECORDS))
            streams[f"{kind}.jsonl"] = islice(records(rng(kind), "train"), count)
            streams[f"{kind}_val.jsonl"] = islice(records(rng(f"{kind}_val"), "val"), n_val)
    if sizes.questions:
        streams["questions.jsonl"] = questions(rng("questions"), sizes.questions)
    return streams


def _make_directory(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError as e:
        raise UserError(f"--out {out} is a file: give a directory") from e
    except NotADirectoryError as e:
        raise UserError(f"--out {out} lies below a file: give a directory") from e
    except PermissionError as e:
        raise UserError(f"--out {out} cannot be made: no permission to write there") from e


def _read_manifest(out: Path) -> Record:
    try:
        manifest = json.loads((out / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) else {}


def _matches(path: Path, entry: object) -> bool:
    if not isinstance(entry, dict) or not path.is_file() or path.stat().st_size != entry.get("bytes"):
        return False
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest() == entry.get("sha256")


def _write(
    out: Path,
    settings: Record,
    streams: dict[str, Iterator[Record]],
    kept: dict[str, Record],
    log: Callable[[str], None],
) -> None:
    """Writes all files under temporary names, then gives them their names: an interruption leaves nothing half done."""
    made: dict[str, Record] = {}
    with _temporary_names(out, [*streams, MANIFEST]) as temporary:
        for name, records in streams.items():
            made[name] = _write_records(temporary[name], records)
            log(f"{name}: {made[name]['records']:,} records, {made[name]['bytes'] / 1e6:.1f} MB")
        files = {**kept, **made}
        manifest = {**settings, "files": {name: files[name] for name in sorted(files)}}
        temporary[MANIFEST].write_text(json.dumps(manifest, indent=2) + "\n", "utf-8", newline="\n")
        # The manifest first: killed between two renames, the next run knows what belongs here and makes the rest.
        for name in (MANIFEST, *streams):
            os.replace(temporary[name], out / name)


@contextmanager
def _temporary_names(out: Path, names: Iterable[str]) -> Iterator[dict[str, Path]]:
    # With the process's number, so that two generators at once do not write into each other's files.
    temporary = {name: out / f".{name}.{os.getpid()}.partial" for name in names}
    try:
        yield temporary
    except PermissionError as e:
        raise UserError(f"{out}: no permission to write there; choose another --out") from e
    except IsADirectoryError as e:
        raise UserError(f"{e.filename2 or e.filename} is a directory: move it away, or choose another --out") from e
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def _write_records(path: Path, records: Iterator[Record]) -> Record:
    encode = json.JSONEncoder(ensure_ascii=False).encode
    digest = hashlib.sha256()
    n_records = n_bytes = 0
    with path.open("wb") as f:
        while lines := [encode(record) for record in islice(records, 1000)]:
            block = ("\n".join(lines) + "\n").encode()
            digest.update(block)
            f.write(block)
            n_records += len(lines)
            n_bytes += len(block)
    return {"records": n_records, "bytes": n_bytes, "sha256": digest.hexdigest()}
