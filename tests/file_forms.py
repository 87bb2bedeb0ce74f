"""The same records in every form, written by others' libraries."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Record = dict[str, Any]


def jsonl(records: Sequence[Record], **options: Any) -> bytes:
    return b"".join(json.dumps(record, **options).encode() + b"\n" for record in records)


def zstd(data: bytes) -> bytes:
    """In one frame, with its length unknown in advance, as a pipe writes it."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def _parquet(path: Path, records: Sequence[Record]) -> None:
    pq.write_table(pa.Table.from_pylist(list(records)), path, row_group_size=3)


def _arrow(path: Path, records: Sequence[Record], new: Callable[..., Any]) -> None:
    table = pa.Table.from_pylist(list(records))
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


# By the name that a user would give.
FORMS: dict[str, Callable[[Path, Sequence[Record]], Any]] = {
    "a.jsonl": lambda path, records: path.write_bytes(jsonl(records, ensure_ascii=False)),
    "ascii.jsonl": lambda path, records: path.write_bytes(jsonl(records)),
    "bom.jsonl": lambda path, records: path.write_bytes(b"\xef\xbb\xbf" + jsonl(records)),
    "crlf.jsonl": lambda path, records: path.write_bytes(jsonl(records).replace(b"\n", b"\r\n")),
    "open_end.jsonl": lambda path, records: path.write_bytes(jsonl(records)[:-1]),
    "no_suffix": lambda path, records: path.write_bytes(jsonl(records)),
    "jsonl.txt": lambda path, records: path.write_bytes(jsonl(records)),
    "a.jsonl.gz": lambda path, records: path.write_bytes(gzip.compress(jsonl(records, ensure_ascii=False))),
    "gzipped_all_the_same.jsonl": lambda path, records: path.write_bytes(gzip.compress(jsonl(records))),
    "not_gzipped.jsonl.gz": lambda path, records: path.write_bytes(jsonl(records)),
    "two_members.jsonl.gz": lambda path, records: path.write_bytes(
        gzip.compress(jsonl(records[:1])) + gzip.compress(jsonl(records[1:]))
    ),
    "a.jsonl.zst": lambda path, records: path.write_bytes(zstd(jsonl(records))),
    "two_frames.jsonl.zst": lambda path, records: path.write_bytes(
        zstd(jsonl(records[:1])) + b"\x52\x2a\x4d\x18\x03\x00\x00\x00abc" + zstd(jsonl(records[1:]))
    ),
    "skippable_first.zst": lambda path, records: path.write_bytes(
        b"\x50\x2a\x4d\x18\x00\x00\x00\x00" + zstd(jsonl(records))
    ),
    "array.json": lambda path, records: path.write_text(json.dumps(records, indent=1)),
    "compact.json": lambda path, records: path.write_text(json.dumps(records, separators=(",", ":"))),
    "array.jsonl": lambda path, records: path.write_text(json.dumps(records, ensure_ascii=False), "utf-8"),
    "array.json.gz": lambda path, records: path.write_bytes(gzip.compress(json.dumps(records, indent=4).encode())),
    "array.txt": lambda path, records: path.write_text(json.dumps(records)),
    "crlf_array.json": lambda path, records: path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(records, indent=1).encode().replace(b"\n", b"\r\n")
    ),
    "pretty.json": lambda path, records: path.write_text("\n".join(json.dumps(r, indent=2) for r in records)),
    "a.parquet": _parquet,
    "parquet.jsonl": _parquet,
    "a.arrow": lambda path, records: _arrow(path, records, pa.ipc.new_stream),
    "a.feather": lambda path, records: _arrow(path, records, pa.ipc.new_file),
}
