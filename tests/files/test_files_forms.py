"""Every form gives the records that were written, whatever stands in them and however it is cut into pieces."""

from __future__ import annotations

import datetime
import gzip
import itertools
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from file_forms import FORMS, jsonl, zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minimind_jax import files
from minimind_jax.errors import UserError
from minimind_jax.files import MAX_LINE_BYTES, locate, open_lines, pieces, recognise
from minimind_jax.files.convert import json_lines

MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=9)})
RECORDS = st.lists(
    st.fixed_dictionaries({"text": st.text(max_size=30), "messages": st.lists(MESSAGE, min_size=1, max_size=3)}),
    min_size=1,
    max_size=9,
)


def read(path: Path) -> list[Any]:
    with open_lines(path) as lines:
        return [json.loads(line) for line in lines if line.strip()]


def numbered(path: Path) -> dict[int, Any]:
    """Records by the number of their line."""
    with open_lines(path) as lines:
        return {n: json.loads(line) for n, line in enumerate(lines, 1) if line.strip()}


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=RECORDS, piece_bytes=st.sampled_from([1, 7, 100, 2**20]))
def test_records_come_back(name: str, records: list[dict[str, Any]], piece_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / name
    FORMS[name](path, records)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE_BYTES", piece_bytes)
        assert read(path) == records


def test_the_form_is_named(tmp_path: Path) -> None:
    names = {}
    for name, write in FORMS.items():
        write(tmp_path / name, [{"text": "a"}, {"text": "b"}])
        names[name] = recognise(tmp_path / name).name
    assert names["no_suffix"] == names["jsonl.txt"] == names["not_gzipped.jsonl.gz"] == "jsonl"
    assert names["gzipped_all_the_same.jsonl"] == names["two_members.jsonl.gz"] == "jsonl, in gzip"
    assert names["skippable_first.zst"] == "jsonl, in zstd"
    assert names["array.jsonl"] == names["array.txt"] == "JSON array"
    assert names["array.json.gz"] == "JSON array, in gzip"
    assert names["pretty.json"] == "JSON objects over several lines"
    assert names["parquet.jsonl"] == "parquet"
    assert names["a.arrow"] == names["a.feather"] == "Arrow"


def test_lines_that_are_no_json_are_left_to_whoever_reads(tmp_path: Path) -> None:
    """One bad line makes no other form of a file, wherever it stands."""
    path = tmp_path / "a.jsonl"
    for bad in (
        b"[1, 2]",
        b"some words",
        b"{",
        b"\xff\xfe\xff",
        b"\x00\x01",
        '{"text": "你好"}'.encode("gbk"),
        b"<html",
    ):
        good = [b'{"text": "a"}', '{"text": "潮水"}'.encode()]
        for lines in ([good[0], bad, good[1]], [bad.strip(b"<{"), *good]):
            path.write_bytes(b"\n".join(lines))
            with open_lines(path) as opened:
                assert opened.form.name == "jsonl"
                assert opened.read() == path.read_bytes()


# --- Plain text ---------------------------------------------------------------------------------


def test_documents_of_a_text_stand_where_they_begin(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = '\ufeff\n\nfirst line\n  indented\n\n \t\nsecond 中文\n\u3000\nthird "quoted" {\n\n\n\nlast, no end'
    documents = {3: "first line\n  indented", 7: "second 中文", 9: 'third "quoted" {', 13: "last, no end"}
    for end in ("\n", "\r\n"):
        path.write_bytes(text.replace("\n", end).encode())
        assert numbered(path) == {n: {"text": document} for n, document in documents.items()}


def test_a_text_may_begin_like_json(tmp_path: Path) -> None:
    for text in ("[citation needed] is a joke", "{x | x > 0} is a set", "[[a]] links", "{", "[1] Smith, 1999", '"Hi"'):
        path = tmp_path / "a.txt"
        path.write_text(text)
        assert read(path) == [{"text": text}]


def test_records_under_a_texts_name_are_no_text(tmp_path: Path) -> None:
    """Nobody wants to train on the braces, also where the first line is damaged or longer than what is looked at."""
    path = tmp_path / "a.txt"
    records = [{"text": f"{i} \n\n words"} for i in range(5)]
    for content in (
        b'{"text": "cut of\n' + jsonl(records),
        jsonl(records)[:-5],
        jsonl([{"text": "x" * 100_000}, *records]),
        b"\n\n" + jsonl(records),
    ):
        path.write_bytes(content)
        assert recognise(path).name == "jsonl"
    path.write_text(json.dumps(records[0], indent=2))
    assert read(path) == records[:1]


@pytest.mark.parametrize("name", ["a.TXT", "a.txt.gz", "a.txt.zst"])
def test_compressed_text(name: str, tmp_path: Path) -> None:
    text = b"one\ntwo\n\nthree"
    (tmp_path / name).write_bytes({".gz": gzip.compress, ".zst": zstd}.get(Path(name).suffix, bytes)(text))
    assert read(tmp_path / name) == [{"text": "one\ntwo"}, {"text": "three"}]


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=8), max_size=12),
    st.integers(1, 40),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_cut_at_its_blank_lines(tmp_path: Path, lines: list[str], piece_bytes: int) -> None:
    """Against a split of the whole in memory."""
    path = tmp_path / "a.txt"
    path.write_bytes("\n".join(["begin", *lines]).encode())
    documents: list[list[str]] = [[]]
    for line in ["begin", *lines]:
        if line.encode().replace("\u3000".encode(), b"").strip():
            documents[-1].append(line)
        else:
            documents.append([])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE_BYTES", piece_bytes)
        assert read(path) == [{"text": "\n".join(document)} for document in documents if document]


def test_a_line_that_is_no_utf8_is_found_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n\nfine so far\ncaf\xe9\nfine\n\nlast\n")
    with open_lines(path) as lines:
        found = {n: line for n, line in enumerate(lines, 1) if line.strip()}
    assert found == {1: b'{"text": "one"}\n', 4: b"caf\xe9\n", 7: b'{"text": "last"}\n'}


def test_a_document_without_end_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with open(path, "wb") as file:
        file.write(b"first\n\n")
        for _ in range(60):
            file.write(b"x" * (2**20 - 1) + b"\n")
        file.write(b"\nlast\n")
    tracemalloc.start()
    with open_lines(path) as lines:
        found = {}
        number = 0
        while line := lines.readline(MAX_LINE_BYTES + 2):
            number += 1
            rest = line
            while not rest.endswith(b"\n"):
                rest = lines.readline(2**20)
            if line.strip():
                found[number] = line[:9], len(line) > MAX_LINE_BYTES
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == {1: (b'{"text": ', False), 3: (b"xxxxxxxxx", True), 64: (b'{"text": ', False)}
    assert peak < 5 * MAX_LINE_BYTES


# --- JSON over several lines --------------------------------------------------------------------


def test_array_elements_may_be_anything(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text, records in {
        "[]": [],
        " [ ] ": [],
        '["a", "b"]': ["a", "b"],
        "[[1, [2]], null, true, 12345678901, 1.5e3]": [[1, [2]], None, True, 12345678901, 1500.0],
        '[{"a": "]},{"}, {"b": "\\\\\\""}]': [{"a": "]},{"}, {"b": '\\"'}],
    }.items():
        path.write_text(text)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pieces, "PIECE_BYTES", 1)
            assert read(path) == records
    assert recognise(path).name == "JSON array"


@given(
    st.lists(st.one_of(st.integers(0, 10**6), st.text(max_size=5), st.lists(st.integers(-99, 99), max_size=3))),
    st.lists(st.integers(1, 9), min_size=1),
    st.sampled_from([None, 1]),
)
def test_an_array_may_be_cut_anywhere(records: list[Any], lengths: list[int], indent: int | None) -> None:
    """Pieces of these lengths, in turn; a number or a character may go on in the next one."""
    data = json.dumps(records, indent=indent, ensure_ascii=False).encode()
    cuts = itertools.accumulate(itertools.cycle(lengths))
    ends = [0, *itertools.takewhile(lambda end: end < len(data), cuts), len(data)]
    lines = json_lines(Path("a.json"), (data[a:b] for a, b in itertools.pairwise(ends)))
    assert [json.loads(line) for line in lines] == records


def test_what_json_cannot_say_stays_to_be_judged_record_by_record(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    elements = [b'{"text": "\\ud800"}', b'{"n": ' + b"9" * 5000 + b"}", b'{"text": "b"}']
    path.write_bytes(b"[" + b",\n".join(elements) + b"]")
    with open_lines(path) as lines:
        assert [line.strip() for line in lines] == elements


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"text": "a"}, {"text": "b', r"record 2 \(Unterminated string"),
        ('[{"text": "a"}', r"record 1 \(after it neither a comma nor the array's end\)"),
        ('[{"text": "a"},', r"record 2 \(Expecting value\)"),
        ('[{"text": "a"} {"text": "b"}]', r"record 1 \(after it neither a comma"),
        ('[{"text": "a"}, {"text": b}]', r"record 2 \(Expecting value\)"),
        ('[{"text": "a"},]', r"record 2 \(Expecting value\)"),
        ('[{"text": "a"}, ' + "[" * 100_000, r"record 2 \(nested too deeply\)"),
        ('[{"text": "a"}]\n[{"text": "b"}]\n', "goes on after the end of its JSON array"),
        ('{\n"text": "a"\n}\n{\n"text": ', r"record 2 \(Expecting value\)"),
    ],
)
def test_damaged_json_names_the_record(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=reason):
        read(path)


def test_an_array_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "x" * 1000} for _ in range(50_000)]))
    tracemalloc.start()
    with open_lines(path) as lines:
        assert sum(1 for _ in lines) == 50_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 2**20


# --- Tables -------------------------------------------------------------------------------------


def test_columns_of_any_type(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {
        "text": ["a", None],
        "binary_text": [b"caf\xc3\xa9", b"\xff\xfe"],
        "day": [datetime.date(2024, 2, 29), None],
        "share": [0.5, float("inf")],
        "tools": [[{"name": "f"}], []],
    }
    pq.write_table(pa.table(columns), path)
    assert read(path) == [
        {"text": "a", "binary_text": "café", "day": "2024-02-29", "share": 0.5, "tools": [{"name": "f"}]},
        {"text": None, "binary_text": "2 bytes", "day": None, "share": float("inf"), "tools": []},
    ]


def test_a_row_group_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rng = random.Random(0)
    pq.write_table(pa.table({"text": [rng.randbytes(500).hex() for _ in range(30_000)]}), path, use_dictionary=False)
    assert pq.ParquetFile(path).num_row_groups == 1 and path.stat().st_size > 15 * 2**20
    before, peak, n = pa.total_allocated_bytes(), 0, 0
    tracemalloc.start()  # what the library reads are objects of Python
    with open_lines(path) as lines:
        for _ in lines:
            n += 1
            peak = max(peak, pa.total_allocated_bytes() - before)
    peak += tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 30_000
    assert peak < 12 * 2**20


def test_text_in_parquet_that_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    binary = pa.array([b"fine", b"\xff"], pa.binary())
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 2, binary.buffers())}), path)
    with pytest.raises(UserError, match=r"a\.parquet is a damaged.*\(text that is not UTF-8\)"):
        read(path)


# --- Messages, and files that end too early -----------------------------------------------------


def test_where_a_record_stands(tmp_path: Path) -> None:
    for name, write in FORMS.items():
        path = tmp_path / name
        write(path, [{"text": "a"}, {"text": "b"}])
        by_line = recognise(path).kind == "jsonl"
        assert locate(path, 2) == (f"{path}:2" if by_line else f"{path}: record 2")
        assert files.unit(path) == ("line" if by_line else "record")
    assert locate(tmp_path / "gone.parquet", 2) == f"{tmp_path / 'gone.parquet'}:2"


@pytest.mark.parametrize("name", [name for name in FORMS if name.endswith((".gz", ".zst", ".parquet", "r", "w"))])
def test_a_file_that_is_cut_short_is_an_error_never_shorter_data(name: str, tmp_path: Path) -> None:
    records = [{"text": f"{i} " + "words " * (i % 50)} for i in range(300)]
    whole = tmp_path / name
    FORMS[name](whole, records)
    data = whole.read_bytes()
    if name.startswith("not_gzipped"):
        return
    boundary = {len(data), 8 if name.startswith("skippable") else 0}
    if name.startswith("two_"):  # a whole member or frame, without those that follow, is a file as well
        first = (gzip.compress if name.endswith("gz") else zstd)(jsonl(records[:1]))
        boundary |= {len(first), len(first) + 11}
    for n in sorted(
        {8, 20, 60, len(data) // 3, len(data) // 2, len(data) - 20, len(data) - 8, len(data) - 1} - boundary
    ):
        cut = tmp_path / f"cut_{n}_{name}"
        cut.write_bytes(data[:n])
        with pytest.raises(UserError, match=r"cut short|damaged"):
            read(cut)


def test_flipped_bits_are_found(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(jsonl([{"text": f"{i}"} for i in range(1000)])))
    data[len(data) // 2] ^= 4
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.jsonl\.gz is damaged gzip data \("):
        read(path)


def test_an_empty_file_inside_a_compressed_one(tmp_path: Path) -> None:
    for name, data in {"a.gz": gzip.compress(b""), "a.zst": zstd(b""), "b.gz": gzip.compress(b"\n\n")}.items():
        (tmp_path / name).write_bytes(data)
        assert read(tmp_path / name) == []


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone cannot be read: No such file"):
        open_lines(tmp_path / "gone")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        open_lines(tmp_path)
