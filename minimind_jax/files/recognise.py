"""What a file is, by how it begins; and what to do with one that is no form of records."""

from __future__ import annotations

import codecs
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minimind_jax.errors import UserError

HEAD_BYTES = 2**16
_JUDGED_LINES = 100  # of a text
Kind = Literal["jsonl", "array", "objects", "text", "parquet", "arrow"]

_NAMES: Mapping[Kind, str] = {
    "jsonl": "jsonl",
    "array": "JSON array",
    "objects": "JSON objects over several lines",
    "text": "plain text, a document up to each blank line",
    "parquet": "parquet",
    "arrow": "Arrow",
}
_COMPRESSED_SUFFIX = re.compile(r"\.(gz|gzip|zst|zstd)$", re.IGNORECASE)

_ZIP, _TAR, _PICKLE = "zip archive", "tar archive", "Python pickle"
# How other formats begin.
_MAGIC = {
    b"PK\x03\x04": _ZIP,
    b"PK\x05\x06": _ZIP,
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"7z\xbc\xaf\x27\x1c": "7z archive",
    b"Rar!": "rar archive",
    b"%PDF": "PDF",
    b"\x80\x02": _PICKLE,
    b"\x80\x03": _PICKLE,
    b"\x80\x04": _PICKLE,
    b"\x80\x05": _PICKLE,
    b"SQLite format 3": "SQLite database",
    b"PARE": "encrypted parquet file",
}
# Commands that help, where FILE is the file and NEW a name for what they write.
_COMMANDS = {
    _ZIP: "unpack it by `unzip FILE` and name what was in it",
    _TAR: "unpack it by `tar -xf FILE` and name what was in it",
    "xz": "unpack it by `xz -dc FILE > NEW`",
    "bzip2": "unpack it by `bzip2 -dc FILE > NEW`",
    "7z archive": "unpack it by `7z x FILE` and name what was in it",
    "rar archive": "unpack it by `unrar x FILE` and name what was in it",
}
_ELSE = "write its records to a jsonl file, one JSON object a line"
_CONTROL = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1b"))
_HTML = re.compile(rb"\s*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE)
_OBJECT_LINE = re.compile(rb"^\s*\{", re.MULTILINE)
_PRETTY_OBJECT = re.compile(rb"\s*\{\s*\n\s*\"[^\"\n]*\"\s*:")
_ARRAY_OF_OBJECTS = re.compile(rb"\s*\[\s*(\{\s*[\"}]|\]\s*$)")


@dataclass(frozen=True)
class Form:
    """What a file is.

    Attributes:
      kind: how its records stand in it.
      compression: "gzip", "zstd" or "".
    """

    kind: Kind
    compression: str = ""

    @property
    def name(self) -> str:
        """For messages."""
        return f"{_NAMES[self.kind]}, in {self.compression}" if self.compression else _NAMES[self.kind]

    @property
    def counts_lines(self) -> bool:
        """Whether a reader's line numbers are the file's own; otherwise they count records."""
        return self.kind in ("jsonl", "text")


def compression_of(start: bytes) -> str:
    """The compression of a file that begins like this: "gzip", "zstd" or ""."""
    if start.startswith(b"\x1f\x8b"):
        return "gzip"
    skippable = 0x50 <= start[0] < 0x60 and start[1:4] == b"\x2a\x4d\x18" if start else False  # what pzstd begins with
    return "zstd" if start.startswith(b"\x28\xb5\x2f\xfd") or skippable else ""


def form_of_head(path: Path, head: bytes, compression: str) -> Form:
    """The form of a file from its first HEAD_BYTES, decompressed and without byte order mark.

    Raises:
      UserError: it is something else; says what, and what to do.
    """
    _refuse_other_formats(path, head, compression)
    table: Kind | None = None
    if head.startswith(b"PAR1"):
        table = "parquet"
    elif head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        table = "arrow"
    if table:
        if compression:
            command = _unpack(path, compression, f".{table}")
            raise UserError(f"{path} is a {_NAMES[table]} file in {compression}, one too much: unpack it by {command}")
        return Form(table)
    _refuse_other_encodings(path, head, compression)
    return Form(_kind_of_text(path, head), compression)


def _kind_of_text(path: Path, head: bytes) -> Kind:
    suffix = Path(_COMPRESSED_SUFFIX.sub("", path.name)).suffix.lower()
    first_line = next((line.strip() for line in head.splitlines() if line.strip()), b"")
    if suffix == ".txt":
        # Text may well begin with a brace, or have one in front of some line.
        if _ARRAY_OF_OBJECTS.match(head):
            return "array"
        if _PRETTY_OBJECT.match(head):
            return "objects"
        return "jsonl" if _are_objects(head) else "text"
    if first_line == b"{":
        return "objects"
    has_objects = _OBJECT_LINE.search(head) is not None
    if first_line.startswith(b"[") and (_ARRAY_OF_OBJECTS.match(head) or not has_objects):
        return "array"
    if has_objects or not first_line:
        return "jsonl"
    if suffix in (".csv", ".tsv"):
        options = ", parse_options=csv.ParseOptions(delimiter='\\t')" if suffix == ".tsv" else ""
        raise UserError(
            f'{path} is a table of text: make it parquet by `python -c "from pyarrow import csv, parquet; '
            f'parquet.write_table(csv.read_csv({str(path)!r}{options}), {str(path) + ".parquet"!r})"`'
        )
    if not _is_utf8(first_line):
        raise UserError(f"{path} is no UTF-8 text, nor anything else that is known: {_ELSE}, in UTF-8")
    new = path.with_name(f"{_COMPRESSED_SUFFIX.sub('', path.name)}.txt")
    raise UserError(
        f"{path} is neither jsonl nor a JSON array but begins with {_excerpt(first_line)}: if it is plain text to "
        f"pretrain on, with blank lines between documents, say so by its name: `mv {_quote(path)} {_quote(new)}`"
    )


def _are_objects(head: bytes) -> bool:
    """Whether most of the lines are JSON objects: a damaged line or two do not make a text of them."""
    lines = [line for line in head.splitlines() if line.strip()][:_JUDGED_LINES]
    return 2 * sum(map(_is_object, lines)) > len(lines)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return line.startswith(b'{"') and len(line) > HEAD_BYTES // 2  # the head's end may have cut it


def _refuse_other_formats(path: Path, head: bytes, compression: str) -> None:
    if head.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path} is a git-lfs pointer, not the data itself: run `git lfs pull` in its repository, or download the "
            "file again"
        )
    if head[257:262] == b"ustar":
        found: str | None = _TAR
    elif compression_of(head):
        raise UserError(
            f"{path} is compressed twice: unpack it once by {_unpack(path, compression, '.' + compression_of(head))}"
        )
    else:
        found = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    if found:
        advice = _COMMANDS.get(found, _ELSE)
        if compression and found != _TAR:  # which tar sees through by itself
            advice = f"unpack it by {_unpack(path, compression, '.unpacked')}, then look at what it is"
        new = path.with_name(f"{path.stem}.unpacked.jsonl")
        advice = advice.replace("FILE", _quote(path)).replace("NEW", _quote(new))
        raise UserError(f"{path} is a{'n' if found[0] in 'xe' else ''} {found} file, not records: {advice}")
    if _HTML.match(head):
        raise UserError(
            f"{path} is a web page, saved instead of the data: download the file itself, not the page that shows it"
        )


def _refuse_other_encodings(path: Path, head: bytes, compression: str) -> None:
    encoding, broken = "", _is_broken(head.splitlines())
    if broken and head.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        encoding = "UTF-32"
    elif broken and head.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "UTF-16"
    elif broken:
        encoding = _utf16(head)
    if not encoding and not _is_utf8(head) and _is_gb18030(head):
        encoding = "GB18030"
    if encoding:
        name = "GBK (GB18030)" if encoding == "GB18030" else encoding
        new = path.with_name(f"{Path(_COMPRESSED_SUFFIX.sub('', path.name)).stem}.utf8{_text_suffix(path)}")
        convert = f"iconv -f {encoding} -t UTF-8"
        command = f"{convert} {_quote(path)} > {_quote(new)}"
        if compression:
            command = f"{compression} -dc < {_quote(path)} | {convert} > {_quote(new)}"
        raise UserError(f"{path} is {name} text, not UTF-8: convert it by `{command}`")
    if broken and len(head) - len(head.translate(None, _CONTROL)) > len(head) // 100:
        raise UserError(f"{path} is a binary file of an unknown format, not records: {_ELSE}")


def _text_suffix(path: Path) -> str:
    return Path(_COMPRESSED_SUFFIX.sub("", path.name)).suffix or ".jsonl"


def _unpack(path: Path, compression: str, suffix: str) -> str:
    new = path.with_name(f"{path.stem}.unpacked{suffix}")
    return f"`{compression} -dc < {_quote(path)} > {_quote(new)}`"


def _quote(path: Path) -> str:
    return shlex.quote(str(path))


def _excerpt(line: bytes) -> str:
    return repr(line[:60].decode(errors="ignore")[:20])


def _is_utf8(head: bytes) -> bool:
    return _decode(head, "utf-8") is not None


def _decode(head: bytes, encoding: str) -> str | None:
    """None where `head`, which may end within a character, is not of this encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return None


def _utf16(head: bytes) -> str:
    """The byte order that makes ordinary text of it; "" for none."""
    for encoding in ("UTF-16LE", "UTF-16BE"):
        text = _decode(head, encoding)
        if text and _ordinary(text) > 0.9 * len(text):
            return encoding
    return ""


def _is_gb18030(head: bytes) -> bool:
    """Whether it is Chinese text in that encoding: nearly all of it the commoner half of GB 2312, and punctuation."""
    text = _decode(head, "gb18030")
    if text is None or not _is_broken([line for line in head.splitlines() if not line.isascii()]):
        return False
    encoded = [c.encode("gb18030") for c in text if not c.isascii()]
    common = sum(0xA1 <= c[0] <= 0xA3 or (0xB0 <= c[0] <= 0xD7 and c[1] >= 0xA1) for c in encoded)
    return len(encoded) > 1 and common > 0.85 * len(encoded)


def _is_broken(lines: list[bytes]) -> bool:
    """Whether most lines are no UTF-8 text: a damaged line or two do not make another encoding of a file."""
    return 2 * sum(b"\x00" in line or not _is_utf8(line) for line in lines) > len(lines)


def _ordinary(text: str) -> int:
    """Characters of ASCII text and of Chinese, punctuation included."""
    return sum(
        " " <= c <= "~" or c in "\t\r\n" or "\u2010" <= c <= "\u203b" or "\u3000" <= c <= "\u301f"
        or "\u4e00" <= c <= "\u9fff" or "\uff00" <= c <= "\uffef"
        for c in text
    )  # fmt: skip
