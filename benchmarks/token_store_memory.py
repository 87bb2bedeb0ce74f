"""Anonymous memory and speed of building token stores from a small and a large file, in any form.

    python -m benchmarks.token_store_memory                       # 200 MB and 1 GB
    python -m benchmarks.token_store_memory --megabytes 20 100 --num-workers 4
    python -m benchmarks.token_store_memory --megabytes 200 --forms jsonl gz zst parquet array text

Each store is built in a process of its own. Memory is the sum of RssAnon (what the kernel cannot drop) over that
process and its workers, sampled from /proc (Linux), so the flat figure is what a machine must have; the pages of the
memory-mapped files come on top as far as there is room. Files and stores are written to a temporary directory and
removed.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from minimind_jax.data import TokenStore

SAMPLE_SECONDS = 0.05

CHILD = """
import sys
from pathlib import Path
from minimind_jax.data import open_store
from minimind_jax.tokenizer import load_tokenizer

print(open_store(Path(sys.argv[1]), load_tokenizer(sys.argv[2]), sys.argv[3], int(sys.argv[4])).path)
"""

PHRASES = (
    "the sea was calm and a small boat came home with the evening light while children counted birds on the wall "
    "machine water green seven paper morning letter between without answer simple because number language"
)
HAN = "潮水退了孩子们在墙上数鸟小船带着晚霞回家机器语言数字因为简单没有之间早晨纸绿七水信回答光"


def documents(n_bytes: int) -> Iterator[str]:
    """About `n_bytes` of text, Chinese and English documents of 100 to 2,000 characters."""
    rng, words = random.Random(0), PHRASES.split()
    written = 0
    while written < n_bytes:
        if rng.random() < 0.5:
            text = " ".join(rng.choices(words, k=rng.randrange(20, 400)))
        else:
            text = "".join(rng.choices(HAN, k=rng.randrange(100, 1000)))
        written += len(text.encode())
        yield text


def write_jsonl(file: BinaryIO, texts: Iterator[str]) -> None:
    for text in texts:
        file.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")


def write_zstd(path: Path, texts: Iterator[str]) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        write_jsonl(file, texts)


def write_parquet(path: Path, texts: Iterator[str]) -> None:
    """One row group, which a reader must not hold as a whole."""
    pq.write_table(pa.table({"text": list(texts)}), path, row_group_size=2**31)


def write_array(path: Path, texts: Iterator[str]) -> None:
    path.write_text(json.dumps([{"text": text} for text in texts], ensure_ascii=False, indent=1), "utf-8")


def write_plain(opener: Callable[..., Any]) -> Callable[[Path, Iterator[str]], None]:
    def write(path: Path, texts: Iterator[str]) -> None:
        with opener(path, "wb") as file:
            write_jsonl(file, texts)

    return write


FORMS: dict[str, tuple[str, Callable[[Path, Iterator[str]], Any]]] = {
    "jsonl": ("jsonl", write_plain(open)),
    "gz": ("jsonl.gz", write_plain(gzip.open)),
    "zst": ("jsonl.zst", write_zstd),
    "parquet": ("parquet", write_parquet),
    "array": ("json", write_array),
    "text": ("txt", lambda path, texts: path.write_text("\n\n".join(texts), "utf-8")),
}


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process and its descendants; a process that has just ended counts as 0."""
    total = 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total += 1024 * int(line.split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(anonymous_bytes(int(child)) for child in (task / "children").read_text().split())
    return total


def build(path: Path, tokenizer: str, cache: Path, num_workers: int) -> tuple[int, float, TokenStore]:
    """Builds a store in a child process. Returns its peak of anonymous bytes, the seconds, and the store."""
    start = time.monotonic()
    command = [sys.executable, "-c", CHILD, str(path), tokenizer, str(cache), str(num_workers)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    while child.poll() is None:
        peak = max(peak, anonymous_bytes(child.pid))
        time.sleep(SAMPLE_SECONDS)
    seconds = time.monotonic() - start
    output, _ = child.communicate()
    if child.returncode:
        raise SystemExit(child.returncode)
    return peak, seconds, TokenStore.open(Path(output.strip()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[200, 1000], help="sizes of the files")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["jsonl"], help="of the files")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that tokenise; 0 = one per CPU core")
    parser.add_argument("--tokenizer", default="", help="directory; default: the shipped one")
    parser.add_argument("--dir", default=None, help="where the files go; default: the system's temporary directory")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        for megabytes, form in itertools.product(args.megabytes, args.forms):
            suffix, write = FORMS[form]
            path = Path(directory) / f"{megabytes}.{suffix}"
            write(path, documents(megabytes * 10**6))
            peak, seconds, store = build(path, args.tokenizer, Path(directory) / f"cache-{form}", args.num_workers)
            print(
                f"{form}, {path.stat().st_size / 1e6:.0f} MB, {store.meta.n_docs} documents, "
                f"{store.meta.n_tokens / 1e6:.1f} M tokens: peak anonymous memory {peak / 1e6:.0f} MB, "
                f"{seconds:.1f} s, {store.meta.n_tokens / seconds / 1e6:.2f} Mtok/s",
                flush=True,
            )


if __name__ == "__main__":
    main()
