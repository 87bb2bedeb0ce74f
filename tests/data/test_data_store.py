from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from data_helpers import BrokenTokenizer, ByteTokenizer, save_tokenizer, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind_jax.data import build, content, worker
from minimind_jax.data.build import open_store
from minimind_jax.data.encoders import make_encoder
from minimind_jax.data.store import TokenStore
from minimind_jax.errors import UserError
from minimind_jax.tokenizer import Tokenizer, load_tokenizer

TEXTS = ["The sea was calm.", "潮水退了。", "🙂", "x" * 300, "The sea was calm."]


def check_store(store: TokenStore, texts: list[str], tokenizer: ByteTokenizer) -> None:
    """Against one text after the other, in plain Python."""
    docs = [[1, *tokenizer.encode_batch([text])[0], 2] for text in texts]
    assert store.tokens.tolist() == [token for doc in docs for token in doc]
    assert store.offsets.tolist() == [sum(map(len, docs[:d])) for d in range(len(docs) + 1)]
    assert store.n_bytes.tolist() == [len(text.encode()) for text in texts]
    hashes = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    assert store.doc_hash.tolist() == [int.from_bytes(h, "little") for h in hashes]
    assert store.meta.n_docs == len(texts)
    assert store.meta.n_tokens == len(store.tokens)


def stores(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir() and path.name != "content"]


def age(path: Path) -> None:
    """As if written a while ago: a file from this very moment may still change unseen, so it is hashed again."""
    os.utime(path, ns=(time.time_ns() - 10**10,) * 2)


def test_arrays_and_their_types(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    store = open_store(path, ByteTokenizer(), str(tmp_path / "cache"))
    check_store(store, TEXTS, ByteTokenizer())
    types = [store.tokens.dtype, store.offsets.dtype, store.n_bytes.dtype, store.doc_hash.dtype]
    assert types == [np.uint16, np.uint64, np.uint32, np.uint64]
    with pytest.raises(ValueError, match="read-only"):
        store.tokens[0] = 7


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_token_type_follows_the_vocabulary(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    tokenizer = ByteTokenizer(vocab_size, vocab_size - 256)
    store = open_store(write_jsonl(tmp_path / "a.jsonl", TEXTS), tokenizer, str(tmp_path / "cache"))
    assert store.tokens.dtype == dtype
    check_store(store, TEXTS, tokenizer)


def test_an_id_beyond_the_type_is_refused_not_wrapped(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer(259, 2**16)
    with pytest.raises(OverflowError):
        open_store(write_jsonl(tmp_path / "a.jsonl", TEXTS), tokenizer, str(tmp_path / "cache"))
    assert stores(tmp_path / "cache") == []


lines = st.one_of(
    st.text(max_size=20).map(lambda t: json.dumps({"text": t}).encode()),
    st.sampled_from([b"", b"  ", b"{}", b"\xff", b'{"text": 1}']),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(lines, min_size=1, max_size=30), st.integers(1, 80), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_chunks_do_not_show(
    tmp_path_factory: pytest.TempPathFactory, raw: list[bytes], chunk_bytes: int, end: bytes, last_end: bool
) -> None:
    texts, bad = [], []
    for number, line in enumerate(raw, 1):
        if line.startswith(b'{"text": "') and (text := json.loads(line)["text"]).strip():
            texts.append(text)
        elif line.strip():
            bad.append(number)
    directory = tmp_path_factory.mktemp("chunks")
    path = directory / "a.jsonl"
    path.write_bytes(end.join(raw) + (end if last_end else b""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(worker, "BATCH_RECORDS", 3)
        if not texts:
            with pytest.raises(UserError, match=r"no usable line|no UTF-8 text|not UTF-8"):
                open_store(path, ByteTokenizer(), str(directory / "cache"))
            return
        store = open_store(path, ByteTokenizer(), str(directory / "cache"))
    check_store(store, texts, ByteTokenizer())
    assert [b.line for b in store.meta.bad] == bad[:20]
    assert (store.meta.n_bad, store.meta.n_records) == (len(bad), len(bad) + len(texts))


def test_second_start_neither_reads_nor_tokenises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    age(path)
    open_store(path, ByteTokenizer(), str(tmp_path / "cache"))

    def scan(path: Path) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(build, "scan", scan)
    check_store(open_store(path, BrokenTokenizer(), str(tmp_path / "cache")), TEXTS, ByteTokenizer())


def test_store_follows_the_content_not_the_place(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    age(path)
    first = open_store(path, ByteTokenizer(), str(cache))
    copy = write_jsonl(tmp_path / "copy.jsonl", TEXTS)
    assert open_store(copy, BrokenTokenizer(), str(cache)).path == first.path
    # Same size, other content, as an editor leaves it.
    write_jsonl(path, [TEXTS[0].upper(), *TEXTS[1:]])
    assert open_store(path, ByteTokenizer(), str(cache)).tokens[1] == ord("T") + 3
    assert open_store(path, ByteTokenizer(), str(cache)).path != first.path
    assert open_store(copy, ByteTokenizer(300), str(cache)).path != first.path
    assert len(stores(cache)) == 3


def test_a_file_written_this_moment_is_not_trusted_by_its_time(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    stamp = time.time_ns()
    os.utime(path, ns=(stamp, stamp))
    open_store(path, ByteTokenizer(), str(tmp_path / "cache"))
    write_jsonl(path, [TEXTS[0].upper(), *TEXTS[1:]])
    os.utime(path, ns=(stamp, stamp))
    assert open_store(path, ByteTokenizer(), str(tmp_path / "cache")).tokens[5] == ord("S") + 3


@pytest.mark.parametrize("victim", ["tokens.bin", "offsets.bin", "n_bytes.bin", "doc_hash.bin", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "lose", "empty"])
def test_a_damaged_store_is_built_anew(
    tmp_path: Path, victim: str, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    age(path)
    cache = tmp_path / "cache"
    file = open_store(path, ByteTokenizer(), str(cache)).path / victim
    if damage == "lose":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size - 1 if damage == "cut" else 0)
    check_store(open_store(path, ByteTokenizer(), str(cache)), TEXTS, ByteTokenizer())
    assert "damaged" in capfd.readouterr().err
    assert len(stores(cache)) == 1


@pytest.mark.parametrize("bit", [9, 17, 40, 63])
def test_offsets_that_are_out_of_order_are_built_anew(
    tmp_path: Path, bit: int, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    age(path)
    whole = open_store(path, ByteTokenizer(), str(tmp_path / "cache"))
    offsets = np.array(whole.offsets)
    offsets[2] ^= np.uint64(1 << bit)
    (whole.path / "offsets.bin").write_bytes(offsets.tobytes())
    check_store(open_store(path, ByteTokenizer(), str(tmp_path / "cache")), TEXTS, ByteTokenizer())
    assert "offsets do not fit the tokens" in capfd.readouterr().err


def test_a_damaged_note_of_the_content_hash_is_ignored(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    age(path)
    cache = tmp_path / "cache"
    first = open_store(path, ByteTokenizer(), str(cache))
    (note,) = (cache / "content").iterdir()
    for text in ("", "[]", "{}", "null"):
        note.write_text(text)
        assert open_store(path, ByteTokenizer(), str(cache)).path == first.path


def test_a_file_that_changes_between_reading_and_tokenising(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)

    def scan_then_edit(path: Path) -> content.Content:
        found = content.scan(path)
        write_jsonl(path, [TEXTS[0].upper(), *TEXTS[1:]])
        return found

    monkeypatch.setattr(build, "scan", scan_then_edit)
    with pytest.raises(UserError, match=r"a\.jsonl changed while it was being read"):
        open_store(path, ByteTokenizer(), str(tmp_path / "cache"))
    assert stores(tmp_path / "cache") == []


def test_a_file_that_grows_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)

    class Growing(content.Progress):
        def close(self, tokens: int = 0) -> None:
            with open(path, "a") as file:
                file.write("more\n")

    monkeypatch.setattr(content, "Progress", Growing)
    with pytest.raises(UserError, match="changed while it was being read"):
        open_store(path, ByteTokenizer(), str(tmp_path / "cache"))


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as e:
        open_store(write_jsonl(tmp_path / "a.jsonl", TEXTS), ByteTokenizer(), str(tmp_path / "cache"))
    assert (e.value.errno, e.value.filename) == (errno.ENOSPC, str(tmp_path / "cache"))
    assert stores(tmp_path / "cache") == []


def test_unusable_cache_directory(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(UserError, match=r"data\.cache_dir: .*a\.jsonl cannot be used"):
        open_store(path, ByteTokenizer(), str(path))


class Noting:
    """An encoder that counts what each text begins with, on reading and on encoding."""

    def __init__(self, tokenizer: ByteTokenizer) -> None:
        self._texts = make_encoder("text", tokenizer)
        self.notes: Counter[str] = Counter({"left over from before": 1})

    def parse(self, line: bytes) -> str:
        text = self._texts.parse(line)
        self.notes[f"read {text[0]}"] += 1
        return text

    def size(self, record: str) -> int:
        return self._texts.size(record)

    def encode(self, records: Sequence[str]) -> list:
        self.notes.update(f"encoded {text[0]}" for text in records)
        return self._texts.encode(records)


def test_notes_are_added_up_over_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["a1", "b1", "a2", "a3"])
    monkeypatch.setattr(content, "CHUNK_BYTES", 20)
    monkeypatch.setattr(worker, "make_encoder", lambda kind, tokenizer: Noting(tokenizer))
    meta = open_store(path, ByteTokenizer(), str(tmp_path / "cache")).meta
    assert meta.notes == {"read a": 3, "encoded a": 3, "read b": 1, "encoded b": 1}
    assert TokenStore.open(tmp_path / "cache" / meta.key).meta == meta


def test_of_many_different_notes_the_commonest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [chr(0x4E00 + i) for i in range(300)] + ["a"] * 3)
    monkeypatch.setattr(content, "CHUNK_BYTES", 20)
    monkeypatch.setattr(build, "MAX_NOTES", 2)
    monkeypatch.setattr(worker, "make_encoder", lambda kind, tokenizer: Noting(tokenizer))
    assert open_store(path, ByteTokenizer(), str(tmp_path / "cache")).meta.notes == {"read a": 3, "encoded a": 3}


# --- Several processes --------------------------------------------------------------------------

BUILDER = """
import os, sys, time
from pathlib import Path
from data_helpers import ByteTokenizer
from minimind_jax.data.build import open_store

class Slow(ByteTokenizer):
    def encode_batch(self, texts):
        with open(sys.argv[3], "a") as log:
            log.write(f"{os.getpid()}\\n")
        time.sleep(float(sys.argv[4]))
        return super().encode_batch(texts)

print(open_store(Path(sys.argv[1]), Slow(), sys.argv[2]).path.name)
"""


def start_builder(path: Path, cache: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(build.__file__).parents[2])]),
    }
    command = [sys.executable, "-c", BUILDER, str(path), str(cache), str(log), str(seconds)]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(log: Path) -> None:
    deadline = time.monotonic() + 30
    while not log.exists():
        assert time.monotonic() < deadline, "the builder does not start"
        time.sleep(0.01)


def test_two_builders_at_once_do_the_work_once(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    cache, log = tmp_path / "cache", tmp_path / "log"
    builders = [start_builder(path, cache, log, 0.5) for _ in range(2)]
    outputs = [builder.communicate(timeout=60) for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert len(log.read_text().split()) == 1
    check_store(open_store(path, BrokenTokenizer(), str(cache)), TEXTS, ByteTokenizer())
    assert len(stores(cache)) == 1


def test_a_killed_builder_leaves_nothing_valid_and_is_cleaned_up_after(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    other = write_jsonl(tmp_path / "b.jsonl", TEXTS[1:])
    cache, log = tmp_path / "cache", tmp_path / "log"
    builder = start_builder(path, cache, log, 60)
    wait_for(log)
    # While it lives, nobody touches its files.
    open_store(other, ByteTokenizer(), str(cache))
    assert sum(".tmp-" in store.name for store in stores(cache)) == 1
    builder.kill()
    builder.communicate()
    for store in stores(cache):
        if ".tmp-" in store.name:
            with pytest.raises(Exception, match="tmp-"):
                TokenStore.open(store)
    check_store(open_store(path, ByteTokenizer(), str(cache)), TEXTS, ByteTokenizer())
    assert not any(".tmp-" in store.name for store in stores(cache))


def test_rubbish_of_another_key_is_removed_too(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    rubbish = cache / "0123.tmp-1-ab"
    rubbish.mkdir(parents=True)
    open_store(write_jsonl(tmp_path / "a.jsonl", TEXTS), ByteTokenizer(), str(cache))
    assert not rubbish.exists()


def test_without_locks_the_first_store_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    cache = tmp_path / "cache"

    def flock(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    class Overtaken(ByteTokenizer):
        def encode_batch(self, texts: list[str]) -> list[list[int]]:
            self.first = open_store(path, ByteTokenizer(), str(cache))  # another builder, in the middle of ours
            return super().encode_batch(texts)

    monkeypatch.setattr(fcntl, "flock", flock)
    tokenizer = Overtaken()
    store = open_store(path, tokenizer, str(cache))
    check_store(store, TEXTS, ByteTokenizer())
    assert store.tokens.base is not None
    assert os.stat(store.path / "tokens.bin").st_mtime_ns == os.stat(tokenizer.first.path / "tokens.bin").st_mtime_ns
    assert len(stores(cache)) == 1


# --- Worker processes ---------------------------------------------------------------------------


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return load_tokenizer(str(save_tokenizer(tmp_path / "tokenizer")))


@pytest.fixture
def many_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(build, "MIN_BYTES_FOR_WORKERS", 0)
    monkeypatch.setattr(content, "CHUNK_BYTES", 2**12)
    lines = [json.dumps({"text": f"{i} {TEXTS[i % 4]}"}) if i % 100 else "{bad" for i in range(2000)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_workers_build_the_same_store(many_texts: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    parallel = open_store(many_texts, tokenizer, str(tmp_path / "parallel"), num_workers=3)
    alone = open_store(many_texts, tokenizer, str(tmp_path / "alone"), num_workers=1)
    assert parallel.meta == alone.meta
    assert alone.meta.n_bad == 20
    for name in ("tokens", "offsets", "n_bytes", "doc_hash"):
        np.testing.assert_array_equal(getattr(parallel, name), getattr(alone, name))
    assert tokenizer.decode(parallel.tokens[: int(parallel.offsets[1])].tolist()) == f"1 {TEXTS[1]}"


def test_a_worker_that_dies_is_named(
    many_texts: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match=r"a process that tokenises .*a\.jsonl died \(exit code 1\)"):
        open_store(many_texts, tokenizer, str(tmp_path / "cache"), num_workers=2)
    assert stores(tmp_path / "cache") == []


def test_an_error_in_a_worker_reaches_the_caller(
    many_texts: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scan_then_edit(path: Path) -> content.Content:
        found = content.scan(path)
        path.write_text(path.read_text().replace("1999", "1998"))
        return found

    monkeypatch.setattr(build, "scan", scan_then_edit)
    with pytest.raises(UserError, match=r"a\.jsonl changed while it was being read"):
        open_store(many_texts, tokenizer, str(tmp_path / "cache"), num_workers=2)
    assert stores(tmp_path / "cache") == []


def is_running(pid: str) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


ORPHAN = """
import sys
from pathlib import Path
from minimind_jax.data import build, content
from minimind_jax.data.build import open_store
from minimind_jax.tokenizer import Tokenizer, load_tokenizer

build.MIN_BYTES_FOR_WORKERS, content.CHUNK_BYTES = 0, 2**12
open_store(Path(sys.argv[1]), load_tokenizer(sys.argv[3]), sys.argv[2], num_workers=2)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds child processes in Linux's /proc")
def test_workers_end_with_a_killed_parent(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", (f"{i} {TEXTS[3]}" for i in range(50_000)))
    env = {**os.environ, "PYTHONPATH": str(Path(build.__file__).parents[2])}
    command = [sys.executable, "-c", ORPHAN, str(path), str(tmp_path / "cache"), str(tokenizer.path)]
    parent = subprocess.Popen(command, env=env)
    children_file = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    deadline = time.monotonic() + 30
    while len(children := children_file.read_text().split()) < 2:
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.02)
