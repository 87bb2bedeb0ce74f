"""What is no file of records gets one sentence; where the sentence names a command, that command helps."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import re
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from file_forms import jsonl, zstd

from minimind_jax.errors import UserError
from minimind_jax.files import open_lines, recognise

CHINESE = [
    {"text": "中国的首都是北京。北京是一座古老的城市，也是政治和文化中心。"},
    {"text": "一天，小明和一只小猫去公园。上午天气很好。"},
]
ENGLISH = [{"text": "The sea was calm."}, {"text": "A small boat came home with the evening light."}]
BOTH = [*CHINESE, *ENGLISH]


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_lines(path)
    message = str(caught.value)
    assert message.count(str(path)) >= 1
    assert "\n" not in message
    return message


def commands(message: str) -> list[str]:
    return re.findall(r"`([^`]*)`", message)


def follow(message: str, directory: Path) -> None:
    """Runs the command that a message names, as a user would who copies it."""
    (command,) = commands(message)
    tools = {word for part in command.split("|") for word in [part.split()[0]]}
    for tool in tools - {"python"}:
        if not shutil.which(tool):
            pytest.skip(f"needs {tool}")
    command = re.sub(r"^python ", f"{sys.executable} ", command)
    subprocess.run(["bash", "-c", command], cwd=directory, check=True)


def only_new(directory: Path, old: Path) -> Path:
    (new,) = [path for path in directory.iterdir() if path != old]
    return new


def read(path: Path) -> list[object]:
    with open_lines(path) as lines:
        return [json.loads(line) for line in lines if line.strip()]


def pack_zip(records: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("inside.jsonl", records)
    return sink.getvalue()


def pack_tar(records: bytes, mode: str = "w") -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as archive:
        info = tarfile.TarInfo("inside.jsonl")
        info.size = len(records)
        archive.addfile(info, io.BytesIO(records))
    return sink.getvalue()


PACKED = {
    "zip archive": ("a.zip", pack_zip),
    "zip archive ": ("a.jsonl", pack_zip),
    "tar archive": ("a.tar", pack_tar),
    "tar archive ": ("a.tar.gz", lambda records: pack_tar(records, "w:gz")),
    "xz": ("a.jsonl.xz", lzma.compress),
    "xz ": ("a.jsonl", lzma.compress),
    "bzip2": ("with space.bz2", bz2.compress),
}


@pytest.mark.parametrize("kind", PACKED)
def test_packed_files_say_how_to_unpack_them(kind: str, tmp_path: Path) -> None:
    name, pack = PACKED[kind]
    path = tmp_path / name
    path.write_bytes(pack(jsonl(BOTH)))
    message = refusal(path)
    assert f"a {kind.strip()} file" in message or f"an {kind.strip()} file" in message
    follow(message, tmp_path)
    assert read(only_new(tmp_path, path)) == BOTH


@pytest.mark.parametrize(("name", "pack"), [("a.gz", gzip.compress), ("a.jsonl.zst", zstd)])
def test_compressed_twice(name: str, pack, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(pack(gzip.compress(jsonl(BOTH))))
    message = refusal(path)
    assert "is compressed twice" in message
    follow(message, tmp_path)
    assert read(only_new(tmp_path, path)) == BOTH


def test_a_table_in_gzip(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(BOTH), sink)
    path = tmp_path / "a.parquet.gz"
    path.write_bytes(gzip.compress(sink.getvalue()))
    follow(refusal(path), tmp_path)
    assert read(only_new(tmp_path, path)) == BOTH


@pytest.mark.skipif(not shutil.which("zstd"), reason="needs zstd")
def test_a_long_window(tmp_path: Path) -> None:
    """A frame by hand: of unknown length, a window of 2**28 bytes, and one raw block, the last."""
    records = jsonl(BOTH)
    path = tmp_path / "a.jsonl.zst"
    block = (len(records) << 3 | 1).to_bytes(3, "little")
    path.write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([(28 - 10) << 3]) + block + records)
    follow(refusal(path), tmp_path)
    assert read(only_new(tmp_path, path)) == BOTH


ENCODINGS = {
    "UTF-16": "utf-16",
    "UTF-16LE": "utf-16-le",
    "UTF-16BE": "utf-16-be",
    "UTF-32": "utf-32",
    "GB18030": "gbk",
    "GB18030 ": "gb18030",
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.jsonl.gz", "no_suffix"])
@pytest.mark.parametrize("records", [CHINESE, BOTH, BOTH * 500], ids=["chinese", "both", "long"])
def test_another_encoding_says_how_to_convert_it(encoding: str, name: str, records: list, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "a.txt":
        text, expected = "\n\n".join(record["text"] for record in records), records
    elif name == "a.json":
        text, expected = json.dumps(records, ensure_ascii=False, indent=1), records
    else:
        text, expected = jsonl(records, ensure_ascii=False).decode(), records
    data = text.encode(ENCODINGS[encoding])
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    message = refusal(path)
    assert f"-f {encoding.strip()} " in message
    follow(message, tmp_path)
    assert read(only_new(tmp_path, path)) == expected


def test_english_in_utf16(tmp_path: Path) -> None:
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        path = tmp_path / "a.jsonl"
        path.write_bytes(jsonl(ENGLISH).decode().encode(encoding))
        assert f"is {encoding.upper().replace('16-', '16')} text, not UTF-8" in refusal(path)


@pytest.mark.parametrize(
    "text",
    [
        "Ein Mädchen größer als später, die Straße hinüber.",
        "Привет, как дела? Всё хорошо.",
        "今日は天気がいいですね。",
        "été à Paris ñandú",
    ],
)
@pytest.mark.parametrize("encoding", ["latin-1", "cp1251", "shift-jis", "utf-8"])
def test_other_encodings_are_not_taken_for_chinese(text: str, encoding: str, tmp_path: Path) -> None:
    try:
        data = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for _ in range(3)).encode(encoding)
    except UnicodeEncodeError:
        pytest.skip("cannot be written so")
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    assert recognise(path).name == "jsonl"  # and each line is no UTF-8


OTHERS = {
    "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 16\n": "git-lfs pointer, not the data itself",
    "<!DOCTYPE html>\n<html><body>Sign in</body></html>": "is a web page",
    "\n <HTML lang='en'>": "is a web page",
    b"%PDF-1.7\n%\xe2\xe3": "is a PDF file, not records: write its records to a jsonl file",
    pickle.dumps(BOTH): "is a Python pickle file",
    pickle.dumps(BOTH, protocol=2): "is a Python pickle file",
    b"7z\xbc\xaf\x27\x1c\x00\x04": "is a 7z archive file",
    b"Rar!\x1a\x07\x00": "is a rar archive file",
    b"PARE1234": "is an encrypted parquet file",
    bytes(range(256)) * 9: "is a binary file",
    b"\x7fELF\x02\x01\x01" + bytes(300): "is a binary file",
}


@pytest.mark.parametrize("content", OTHERS, ids=lambda content: repr(content[:8]))
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.json", "a.parquet"])
def test_anything_else_is_named(content: str | bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert OTHERS[content] in refusal(path)


def test_text_in_an_unknown_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes("Größe\n".encode("latin-1"))
    assert "is no UTF-8 text, nor anything else that is known" in refusal(path)


def test_a_database(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with sqlite3.connect(path) as database:
        database.execute("create table t (text)")
    assert "is a SQLite database file" in refusal(path)


def test_text_under_another_name_says_which_name_it_needs(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.md", "with space.json", "a.jsonl.gz"):
        path = tmp_path / name
        path.write_text("Once upon a time\nthere was a sea.\n\nThe end.\n")
        message = refusal(path)
        assert "begins with 'Once upon a time'" in message
        follow(message, tmp_path)
        (new,) = tmp_path.iterdir()
        assert read(new) == [{"text": "Once upon a time\nthere was a sea."}, {"text": "The end."}]
        new.unlink()


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t")])
def test_a_table_of_text_says_how_to_convert_it(name: str, separator: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(f'id{separator}text\n1{separator}"The sea, calm."\n2{separator}潮水退了。\n', "utf-8")
    follow(refusal(path), tmp_path)
    assert read(only_new(tmp_path, path)) == [{"id": 1, "text": "The sea, calm."}, {"id": 2, "text": "潮水退了。"}]


def test_what_looks_like_a_table_and_is_none(tmp_path: Path) -> None:
    for content in (b"PAR1" + bytes(range(256)) * 20, b"ARROW1\x00\x00" + bytes(90), b"\xff\xff\xff\xff" + bytes(90)):
        path = tmp_path / "a.parquet"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.parquet is (a damaged or incomplete (parquet|Arrow) file|cut short)"):
            read(path)
