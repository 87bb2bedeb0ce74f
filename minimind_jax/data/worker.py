"""Tokenising one chunk of a jsonl file, here or in worker processes.

A worker is a fresh interpreter that imports this module and nothing of the caller's: no fork (JAX has threads), no
second run of the caller's main module, and it ends by itself when its parent dies, however that happens.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import queue
import signal
import subprocess
import sys
import traceback
from array import array
from collections import Counter, deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from minimind_jax.data.encoders import Encoder, Kind, make_encoder
from minimind_jax.data.jsonl import BadLine, LineError, as_bad_line, first_lines, read_records
from minimind_jax.data.store import token_dtype
from minimind_jax.errors import UserError

if TYPE_CHECKING:
    from minimind_jax.tokenizer import Tokenizer

MAX_BAD_KEPT = 20  # bad lines of a file that are kept word for word
# Records that are encoded together: enough to keep the encoder busy, little enough to keep memory flat.
BATCH_RECORDS, BATCH_CHARS = 256, 2**17


@dataclass(frozen=True)
class ChunkTokens:
    """The documents of one chunk, in file order.

    Attributes:
      tokens: (n_tokens,) uint16 or uint32.
      flags: (n_tokens,) uint8, or (0,) for a kind whose tokens all count.
      lengths: (n_docs,) uint32, tokens of each document.
      n_bytes: (n_docs,) uint32, UTF-8 bytes of what is learnt of each.
      doc_hash: (n_docs,) uint64, 64-bit BLAKE2b of each document's identity.
      n_lines: all lines, blank ones too: what the next chunk's line numbers start from.
      n_records: lines that are not blank.
      n_bad, n_dropped: unusable lines, and well-formed ones that teach nothing.
      bad: the first MAX_BAD_KEPT of each, numbered within the chunk.
      notes: the encoder's.
    """

    tokens: np.ndarray
    flags: np.ndarray
    lengths: np.ndarray
    n_bytes: np.ndarray
    doc_hash: np.ndarray
    n_lines: int
    n_records: int
    n_bad: int
    n_dropped: int
    bad: list[BadLine]
    notes: Counter[str]


def tokenize_chunk(lines: bytes, tokenizer: Tokenizer, encoder: Encoder) -> ChunkTokens:
    """Tokenises the records of one chunk of jsonl."""
    # array('H') and array('I') refuse an id that does not fit, where numpy would wrap it around.
    tokens = array("H" if token_dtype(tokenizer.vocab_size) == np.uint16 else "I")
    flags = bytearray()
    lengths, n_bytes, doc_hash = array("I"), array("I"), array("Q")
    bad: list[BadLine] = []
    n_records = n_bad = n_dropped = 0
    waiting: list[tuple[int, Any]] = []  # (line, record)
    n_chars = 0

    def reject(line: BadLine) -> None:
        nonlocal n_bad, n_dropped
        n_dropped += line.dropped
        n_bad += not line.dropped
        bad.append(line)
        if len(bad) > 2 * MAX_BAD_KEPT + BATCH_RECORDS:
            keep_first_bad()

    def keep_first_bad() -> None:
        bad[:] = first_lines(bad, MAX_BAD_KEPT)

    def flush() -> None:
        nonlocal n_chars
        encoded = encoder.encode([record for _, record in waiting])
        for (number, _), documents in zip(waiting, encoded, strict=True):
            if isinstance(documents, LineError):
                reject(as_bad_line(number, documents))
                continue
            for document in documents:
                tokens.extend(document.tokens)
                flags.extend(document.flags)
                lengths.append(len(document.tokens))
                n_bytes.append(document.n_bytes)
                doc_hash.append(int.from_bytes(hashlib.blake2b(document.identity, digest_size=8).digest(), "little"))
        waiting.clear()
        n_chars = 0
        keep_first_bad()

    encoder.notes.clear()
    for number, record in read_records(io.BytesIO(lines), encoder.parse):
        n_records += 1
        if isinstance(record, BadLine):
            reject(record)
            continue
        waiting.append((number, record))
        n_chars += encoder.size(record)
        if len(waiting) >= BATCH_RECORDS or n_chars >= BATCH_CHARS:
            flush()
    flush()
    return ChunkTokens(
        tokens=np.array(tokens, token_dtype(tokenizer.vocab_size)),
        flags=np.frombuffer(flags, np.uint8),
        lengths=np.array(lengths, np.uint32),
        n_bytes=np.array(n_bytes, np.uint32),
        doc_hash=np.array(doc_hash, np.uint64),
        n_lines=lines.count(b"\n") + (not lines.endswith(b"\n")),
        n_records=n_records,
        n_bad=n_bad,
        n_dropped=n_dropped,
        bad=bad,
        notes=encoder.notes.copy(),
    )


def tokenize_chunks(
    path: Path, chunks: Iterable[bytes], tokenizer: Tokenizer, num_workers: int, kind: Kind
) -> Generator[ChunkTokens, None, None]:
    """Yields the tokens of each chunk, in order.

    Args:
      path: the file, for messages.
      chunks: jsonl in whole lines; read as they are needed.
      tokenizer: the workers load it again from `tokenizer.path`.
      num_workers: processes; 0 = tokenise here. At most twice as many chunks are in flight.
      kind: of the file's records.

    Raises:
      UserError: a worker died, or what reading `chunks` raises.
    """
    if not num_workers:
        encoder = make_encoder(kind, tokenizer)
        for chunk in chunks:
            yield tokenize_chunk(chunk, tokenizer, encoder)
        return
    workers = [_Worker(tokenizer, kind) for _ in range(num_workers)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def work(chunk: bytes) -> ChunkTokens:
        worker = idle.get()
        try:
            return worker.call(path, chunk)
        finally:
            idle.put(worker)

    in_flight: deque[Future[ChunkTokens]] = deque()
    with ThreadPoolExecutor(num_workers) as threads:
        try:
            for chunk in chunks:
                in_flight.append(threads.submit(work, chunk))
                if len(in_flight) >= 2 * num_workers:
                    yield in_flight.popleft().result()
            while in_flight:
                yield in_flight.popleft().result()
        finally:
            for future in in_flight:
                future.cancel()
            for worker in workers:
                worker.stop()


class _Worker:
    """The parent's end of one worker process: pickles over its stdin and stdout."""

    def __init__(self, tokenizer: Tokenizer, kind: Kind) -> None:
        root = str(Path(__file__).parents[2])
        python_path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from minimind_jax.data.worker import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # One process a core is parallel enough; the encoder's own threads would only get in the way.
            env={**os.environ, "PYTHONPATH": python_path, "TOKENIZERS_PARALLELISM": "false"},
        )
        self._send((str(tokenizer.path), tokenizer.fingerprint, kind))

    def call(self, path: Path, chunk: bytes) -> ChunkTokens:
        self._send(chunk)
        assert self.process.stdout is not None
        try:
            answer = pickle.load(self.process.stdout)
        except (EOFError, pickle.UnpicklingError):
            code = self.process.wait()
            raise UserError(
                f"a process that tokenises {path} died (exit code {code}), perhaps for lack of memory: "
                "lower data.num_workers and run the same command again"
            ) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # a message that a dead worker never took
                pipe.close()

    def _send(self, message: Any) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died, and the missing answer will tell
            pickle.dump(message, self.process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            self.process.stdin.flush()


def serve() -> None:
    """A worker's main: answers chunks with ChunkTokens or an exception until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends the workers
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not get between the answers
    try:
        _serve(sys.stdin.buffer, answers)
    except (BrokenPipeError, EOFError):
        os._exit(0)  # the parent is gone; nothing is left to flush


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    from minimind_jax.tokenizer import load_tokenizer

    tokenizer_dir, fingerprint, kind = pickle.load(requests)
    tokenizer = load_tokenizer(tokenizer_dir)
    encoder = None
    while True:
        chunk = pickle.load(requests)
        answer: ChunkTokens | Exception
        try:
            if tokenizer.fingerprint != fingerprint:
                raise UserError(f"the tokenizer in {tokenizer_dir} changed while it was used: run the command again")
            encoder = encoder or make_encoder(kind, tokenizer)
            answer = tokenize_chunk(chunk, tokenizer, encoder)
        except UserError as e:
            answer = e
        except Exception:
            answer = RuntimeError(f"in a tokenising process:\n{traceback.format_exc()}")
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()
