from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimind_jax.data.jsonl import MAX_LINE_BYTES, BadLine, check_bad_lines, parse_text, read_jsonl, read_records
from minimind_jax.errors import UserError

GOOD = b'{"text": "good"}\n'
BAD_LINES = {
    b'{"text": "caf\xe9"}': "not UTF-8",
    b'{"text": "cut of': "not JSON",
    b'["text"]': "not a JSON object but a list",
    b"17": "not a JSON object but a number",
    b'{"content": "x", "role": "user"}': "lacks `text`, has `content`, `role`",
    b"{}": "lacks `text`, has no field at all",
    b'{"text": 3}': "`text` is not a string but a number",
    b'{"text": null}': "`text` is not a string but null",
    b'{"text": ["a"]}': "`text` is not a string but a list",
    b'{"text": ""}': "`text` is empty",
    b'{"text": " \\n "}': "`text` is empty",
    b'{"text": "\\ud800"}': "surrogate",
    b"[" * 100_000: "nested too deeply",
    b'{"text": ' + b"9" * 5000 + b"}": "a number is too long",
}


def read(data: bytes) -> list[tuple[int, str | BadLine]]:
    return list(read_records(io.BytesIO(data), parse_text))


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.items(), ids=lambda v: v[:20] if isinstance(v, str) else "")
def test_bad_line_is_named_and_the_next_one_read(line: bytes, reason: str) -> None:
    (first, bad, last) = read(GOOD + line + b"\n" + GOOD)
    assert first == (1, "good")
    assert last == (3, "good")
    assert isinstance(bad[1], BadLine)
    assert bad[0] == bad[1].line == 2
    assert reason in bad[1].reason


def test_crlf_blank_lines_and_missing_last_newline() -> None:
    data = GOOD + b"\r\n \t\n" + GOOD.replace(b"\n", b"\r\n") + GOOD.strip()
    assert read(data) == [(1, "good"), (4, "good"), (5, "good")]
    assert read(b"\n\n") == []


def test_a_byte_order_mark_is_no_error_at_the_files_start_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\xef\xbb\xbf" + GOOD)
    first, (number, late) = read_jsonl(path, parse_text)
    assert first == (1, "good")
    assert number == 2
    assert isinstance(late, BadLine)


@given(st.lists(st.text().filter(lambda t: t.strip()), max_size=5), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_any_text_comes_back(texts: list[str], end: str, ascii_only: bool) -> None:
    data = "".join(json.dumps({"text": t}, ensure_ascii=ascii_only) + end for t in texts).encode()
    assert read(data) == list(enumerate(texts, 1))


@pytest.mark.parametrize(
    ("extra", "end", "good"), [(0, b"\n", True), (0, b"\r\n", True), (0, b"", True), (1, b"\n", False)]
)
def test_a_line_of_16_mib_is_the_longest(extra: int, end: bytes, good: bool) -> None:
    frame = len(b'{"text": ""}')
    line = b'{"text": "' + b"x" * (MAX_LINE_BYTES - frame + extra) + b'"}' + end
    (record,) = read(line)
    if good:
        assert isinstance(record[1], str)
        assert len(record[1]) == MAX_LINE_BYTES - frame
    else:
        assert record == (1, BadLine(1, "longer than 16 MiB"))


def test_a_longer_line_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with open(path, "wb") as file:
        file.write(GOOD)
        for _ in range(100):
            file.write(b"x" * 2**20)
        file.write(b"\n" + GOOD)
    tracemalloc.start()
    records = list(read_jsonl(path, parse_text))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert records == [(1, "good"), (2, BadLine(2, "longer than 16 MiB")), (3, "good")]
    assert peak < 3 * MAX_LINE_BYTES


def test_share_of_bad_lines() -> None:
    path = Path("x.jsonl")
    bad = [BadLine(line, f"not JSON (why {line})") for line in range(10, 15)] + [
        BadLine(15, "longer"),
        BadLine(16, "bad"),
    ]
    assert check_bad_lines(path, 100, 0, [], 0.0) == ""
    assert check_bad_lines(path, 100, 7, bad, 0.07) == (
        "x.jsonl: skipped 7 of 100 lines as unusable: x.jsonl:10 and 4 more: not JSON (why 10); x.jsonl:15: longer; "
        "x.jsonl:16: bad"
    )
    assert check_bad_lines(path, 100, 8, bad, 0.08).endswith("; x.jsonl:16: bad; ...")
    with pytest.raises(
        UserError, match=r"7 of 100 lines are unusable \(7 %\).*x\.jsonl:10 .*: not JSON.*raise data\.max"
    ):
        check_bad_lines(path, 100, 7, bad, 0.069)
    with pytest.raises(UserError, match=r"x\.jsonl has no usable line \(x\.jsonl:10 and 4 more"):
        check_bad_lines(path, 7, 7, bad, 1.0)
    with pytest.raises(UserError, match=r"x\.jsonl has no usable line$"):
        check_bad_lines(path, 0, 0, [], 1.0)


def test_at_most_five_reasons_are_named() -> None:
    bad = [BadLine(line, f"reason {line}") for line in range(1, 8)]
    report = check_bad_lines(Path("x.jsonl"), 100, 7, bad, 1.0)
    assert report.count("x.jsonl:") == 6
    assert report.endswith("x.jsonl:5: reason 5; ...")


def test_records_of_a_table_are_counted_as_such(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["good", "", None]}), path)
    records = list(read_jsonl(path, parse_text))
    assert records[0] == (1, "good")
    bad = [record for _, record in records if isinstance(record, BadLine)]
    with pytest.raises(UserError) as caught:
        check_bad_lines(path, 3, 2, bad, 0.1)
    message = str(caught.value)
    assert f"{path}: 2 of 3 records are unusable" in message
    assert f"{path}: record 2: `text` is empty; {path}: record 3: `text` is not a string but null." in message


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        list(read_jsonl(tmp_path / "gone.jsonl", parse_text))
