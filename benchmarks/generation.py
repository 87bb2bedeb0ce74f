"""Generation, our engine against transformers' `generate` on the same weights, side by side.

    python -m benchmarks.generation --preset minimind2_small [--batch 1 32] [--repeats N]

Both in float32, greedy, to a fixed number of tokens, by turns in one process with the same number of threads (one for
every core the process may use). Measured are

  prefill   tokens of a prompt of --prompt tokens a second, and the time to its first token
  decode    new tokens a second of a batch, without the time to the first one
  arrivals  32 requests of mixed lengths that arrive at random: from the first arrival to the last answer. transformers
            serves them one after another, as a script around `generate` does; the engine batches them as they come.

The first rounds do not count: one of transformers, ours until nothing new is compiled. How many requests run at the
same time depends on timing, so that later rounds can still meet a size for the first time. Needs torch and transformers
(requirements-test.txt).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers

from minimind_jax import hf_format
from minimind_jax.config import ModelConfig
from minimind_jax.errors import user_errors
from minimind_jax.inference import Engine, Options, Piece
from minimind_jax.model import Params, abstract_params
from minimind_jax.recipe import MODEL_PRESETS
from minimind_jax.tokenizer import load_tokenizer

_PAUSE_S = 0.05  # PyTorch's threads keep spinning for a moment after their work
_REQUESTS = 32

Prompt = list[int]
# serve(arrivals in seconds, prompts, new tokens of each) -> seconds to the first token and to the end of each, from 0
Serve = Callable[[Sequence[float], Sequence[Prompt], Sequence[int]], tuple[list[float], list[float]]]


def our_side(engine: Engine) -> Serve:
    def serve(
        arrivals: Sequence[float], prompts: Sequence[Prompt], new: Sequence[int]
    ) -> tuple[list[float], list[float]]:
        first, last = [0.0] * len(prompts), [0.0] * len(prompts)
        ends: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        began = time.perf_counter()

        def submit(i: int) -> None:
            def on_piece(piece: Piece) -> None:
                now = time.perf_counter() - began
                first[i] = first[i] or now
                if piece.finish_reason:
                    last[i] = now
                    ends.put(piece)

            engine.submit(prompts[i], Options(max_new_tokens=new[i], ignore_eos=True), on_piece)

        for i, arrival in enumerate(arrivals):
            time.sleep(max(0.0, arrival - (time.perf_counter() - began)))
            submit(i)
        for _ in prompts:
            piece = ends.get()
            assert piece.finish_reason == "length", piece
        return first, last

    return serve


def their_side(config: ModelConfig, params: Params) -> Serve:
    """All that arrive at the same time, with prompts of the same length, are one batch."""
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as directory:
        hf_format.write_config(Path(directory), config, dtype="float32", bos_id=1, eos_id=2, pad_id=0)
        hf_format.write_params(Path(directory), params, config, "float32")
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    class FirstToken(transformers.generation.streamers.BaseStreamer):
        def __init__(self) -> None:
            self.calls, self.time = 0, 0.0

        def put(self, value: torch.Tensor) -> None:
            self.calls += 1
            if self.calls == 2:  # the first call is the prompt
                self.time = time.perf_counter()

        def end(self) -> None:
            pass

    def serve(
        arrivals: Sequence[float], prompts: Sequence[Prompt], new: Sequence[int]
    ) -> tuple[list[float], list[float]]:
        first, last = [0.0] * len(prompts), [0.0] * len(prompts)
        began = time.perf_counter()
        batches = [list(range(len(prompts)))] if len(set(arrivals)) == 1 else [[i] for i in range(len(prompts))]
        for batch in batches:
            time.sleep(max(0.0, arrivals[batch[0]] - (time.perf_counter() - began)))
            ids, alone = torch.tensor([prompts[i] for i in batch]), len(batch) == 1
            streamer = FirstToken() if alone else None  # transformers streams single sequences only
            offset, to_first = time.perf_counter() - began, 0.0 if alone else seconds(generate, ids, 1)
            start = time.perf_counter()
            generate(ids, new[batch[0]], streamer)
            end = time.perf_counter()
            for i in batch:
                first[i] = offset + (streamer.time - start if streamer else to_first)
                last[i] = offset + end - start
        return first, last

    def generate(ids: torch.Tensor, n: int, streamer: Any = None) -> None:
        mask = torch.ones_like(ids)
        with torch.inference_mode():
            model.generate(ids, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, streamer=streamer)

    return serve


def seconds(run: Callable[..., None], *arguments: Any) -> float:
    began = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - began


def random_params(config: ModelConfig) -> Params:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: rng.normal(0, x.shape[-1] ** -0.5, x.shape).astype(np.float32), abstract_params(config)
    )


@dataclass(frozen=True)
class Workload:
    arrivals: list[float]  # seconds
    lengths: list[int]  # tokens of the prompts
    new: list[int]  # tokens of the answers

    def prompts(self, vocab_size: int, seed: int) -> list[Prompt]:
        """Others in every round, since the engine would not read the same one twice in a row."""
        rng = np.random.default_rng(seed)
        return [rng.integers(3, vocab_size, n).tolist() for n in self.lengths]


def workloads(batches: Sequence[int], prompt: int, new: int, gap: float) -> dict[str, Workload]:
    found = {"prefill": Workload([0.0], [prompt], [1])}
    for n in batches:
        found[f"decode, batch {n}"] = Workload([0.0] * n, [32] * n, [new] * n)
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(gap, _REQUESTS)).tolist()
    lengths, wanted = rng.integers(16, 257, _REQUESTS), rng.integers(16, 129, _REQUESTS)
    found["arrivals"] = Workload(arrivals, lengths.tolist(), wanted.tolist())
    return found


def rate(name: str, workload: Workload, first: list[float], last: list[float]) -> float:
    """Tokens a second."""
    if name == "prefill":
        return workload.lengths[0] / first[0]
    if name == "arrivals":
        return sum(workload.new) / (max(last) - workload.arrivals[0])
    return sum(n - 1 for n in workload.new) / (max(last) - max(first))


def warm_up(engine: Engine, sides: dict[str, Serve], workload: Workload) -> int:
    """Rounds until the engine compiles nothing new in two of them, at most ten: their number."""
    quiet = n_rounds = 0
    while quiet < 2 and n_rounds < 10:
        n_programs = len(engine.statistics.programs)
        prompts = workload.prompts(engine.config.vocab_size, 1000 + n_rounds)
        sides["ours"](workload.arrivals, prompts, workload.new)
        quiet = quiet + 1 if len(engine.statistics.programs) == n_programs else 0
        n_rounds += 1
    sides["transformers"](workload.arrivals, prompts, workload.new)
    return n_rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=MODEL_PRESETS, default="minimind2_small")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="sequences decoded together")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt that is prefilled")
    parser.add_argument("--new", type=int, default=96, help="new tokens of each sequence in the decode workloads")
    parser.add_argument("--gap", type=float, default=0.1, help="mean seconds between arrivals")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    with user_errors():
        threads = len(os.sched_getaffinity(0))
        torch.set_num_threads(threads)
        config = ModelConfig(**MODEL_PRESETS[args.preset], max_seq_len=2048)
        params = random_params(config)
        with Engine(config, params, load_tokenizer(), max_batch=32) as engine:
            sides = {"ours": our_side(engine), "transformers": their_side(config, params)}
            result = {"platform": platform.platform(), "threads": threads, "preset": args.preset}
            print(
                f"{args.preset}, {threads} threads, jax {jax.__version__}, torch {torch.__version__}, "
                f"transformers {transformers.__version__}"
            )
            for name, workload in workloads(args.batch, args.prompt, args.new, args.gap).items():
                rates: dict[str, list[float]] = {side: [] for side in sides}
                waits: dict[str, list[float]] = {side: [] for side in sides}
                n_warm_up = warm_up(engine, sides, workload)
                for repeat in range(args.repeats):
                    prompts = workload.prompts(config.vocab_size, repeat)
                    for side, serve in sides.items():
                        time.sleep(_PAUSE_S)
                        first, last = serve(workload.arrivals, prompts, workload.new)
                        rates[side].append(rate(name, workload, first, last))
                        waits[side] += [f - a for f, a in zip(first, workload.arrivals, strict=True)]
                ratios = [a / b for a, b in zip(rates["ours"], rates["transformers"], strict=True)]
                result[name] = {"rates": rates, "first_token_s": waits}
                (ours, theirs), (wait, their_wait) = (map(statistics.median, x.values()) for x in (rates, waits))
                print(
                    f"{name:16} ours {ours:8.1f} tokens/s, transformers {theirs:8.1f}, ratio "
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); first token after "
                    f"{1000 * wait:.0f} and {1000 * their_wait:.0f} ms; {n_warm_up} rounds to warm up"
                )
            print(f"programs compiled by the engine: {len(engine.statistics.programs)}")
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
