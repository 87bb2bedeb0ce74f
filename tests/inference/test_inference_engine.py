"""Continuous batching: what a request gets does not depend on who else is there, and every way out frees its row."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.inference import Engine, Options, Piece, QueueFullError, decode, generate
from minimind_jax.inference import engine as engine_module
from minimind_jax.model import abstract_params, hidden_states, logits, xla_attention
from minimind_jax.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer()
CONFIG = ModelConfig(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=TOKENIZER.vocab_size, max_seq_len=2048
)
EOS = TOKENIZER.eos_id


@pytest.fixture(scope="module")
def params() -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), abstract_params(CONFIG))


@pytest.fixture(scope="module")
def engine(params) -> Iterator[Engine]:
    with Engine(CONFIG, params, TOKENIZER, max_batch=8) as engine:
        yield engine


class Answer:
    """Collects a request's pieces."""

    def __init__(self, engine: Engine, prompt: list[int], **options: Any) -> None:
        self.pieces: list[Piece] = []
        self._end = threading.Event()
        self.request = engine.submit(prompt, Options(**options), self._on_piece)

    def _on_piece(self, piece: Piece) -> None:
        assert not self._end.is_set(), "a piece after the last one"
        self.pieces.append(piece)
        if piece.finish_reason:
            self._end.set()

    def wait(self) -> Answer:
        assert self._end.wait(120), "no end"
        return self

    @property
    def ids(self) -> list[int]:
        return [token.id for piece in self.pieces for token in piece.tokens]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def reason(self) -> str:
        return self.pieces[-1].finish_reason


def prompts(lengths: list[int]) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [[1, *rng.integers(3, CONFIG.vocab_size, n - 1).tolist()] for n in lengths]


def wait_until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.slow
def test_greedy_in_a_mixed_batch_equals_batch_generation(engine: Engine, params):
    """Requests of all lengths that come while others run, more than there are rows, and past the first cache size."""
    lengths = [1, 5, 300, 17, 2, 40, 1, 600, 9, 250, 33, 3]
    texts, new = prompts(lengths), [10, 60, 5, 33, 80, 1, 2, 7, 40, 30, 12, 25]
    answers = []
    for i, (prompt, n) in enumerate(zip(texts, new, strict=True)):
        answers.append(Answer(engine, prompt, max_new_tokens=n))
        if i % 3 == 2:
            time.sleep(0.05)
    for answer, prompt, n in zip(answers, texts, new, strict=True):
        expected = generate(CONFIG, params, [prompt], Options(max_new_tokens=n), eos_id=EOS)[0]
        assert answer.wait().ids == expected
        assert answer.reason == ("length" if len(expected) == n else "stop")
        assert answer.text == TOKENIZER.decode(expected)
    assert engine.n_running == engine.n_waiting == 0


def test_draws_do_not_depend_on_the_others(engine: Engine, params):
    options = dict(max_new_tokens=20, temperature=1.3, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=7)
    alone = Answer(engine, [1, 5, 9], **options).wait().ids
    others = [Answer(engine, [1, 5, 9], **options | {"seed": seed}) for seed in range(7)]
    assert Answer(engine, [1, 5, 9], **options).wait().ids == alone
    assert len({tuple(other.wait().ids) for other in others}) == 7
    assert generate(CONFIG, params, [[1, 5, 9]], Options(**options), eos_id=EOS) == [alone]


def test_ends(engine: Engine):
    free = Answer(engine, [1, 8, 8], max_new_tokens=30, ignore_eos=True).wait()
    assert len(free.ids) == 30 and free.reason == "length"
    cut = Answer(engine, [1, 8, 8], max_new_tokens=30, ignore_eos=True, stop_token_ids=(free.ids[9],)).wait()
    first = free.ids.index(free.ids[9])
    assert cut.ids == free.ids[:first] and cut.reason == "stop"
    assert cut.pieces[-1].end.id == free.ids[9] and free.pieces[-1].end is None
    stop = free.text[len(free.text) // 2 :][:3]
    by_text = Answer(engine, [1, 8, 8], max_new_tokens=30, ignore_eos=True, stop=(stop,)).wait()
    assert by_text.text == free.text[: free.text.index(stop)] and by_text.reason == "stop"


@pytest.mark.parametrize("length", [3, 130, 513, 1200])  # read at once, or in pieces of 512 tokens
def test_log_probabilities_are_the_models(engine: Engine, params, length: int):
    [prompt] = prompts([length])
    answer = Answer(engine, prompt, max_new_tokens=12, temperature=1.5, seed=3, top_logprobs=4).wait()
    plain = Answer(engine, prompt, max_new_tokens=12, temperature=1.5, seed=3).wait()
    assert answer.ids == plain.ids
    ids = np.array([[*prompt, *answer.ids]], np.int32)
    positions = np.arange(ids.shape[1], dtype=np.int32)[None]
    hidden = hidden_states(CONFIG, params, ids, positions, np.ones_like(ids), attention=xla_attention)
    expected = np.asarray(jax.nn.log_softmax(logits(params, hidden)[0], axis=-1))
    tokens = [token for piece in answer.pieces for token in piece.tokens]
    for place, token in enumerate(tokens, length - 1):  # what the prompt's last position predicts is the first one
        assert token.logprob == pytest.approx(expected[place, token.id], abs=1e-4)
        best = np.argsort(-expected[place])[:4]
        assert [i for i, _ in token.top] == best.tolist()
        np.testing.assert_allclose([x for _, x in token.top], expected[place, best], atol=1e-4)


@pytest.mark.slow
def test_penalties_and_bias_act_on_what_was_generated(engine: Engine, params):
    """Greedy, step by step, from the whole model's logits and numpy's arithmetic."""
    prompt, banned = [1, 5, 9, 9], 2345
    options = dict(frequency_penalty=0.6, presence_penalty=0.4, repetition_penalty=1.1)
    plain = Answer(engine, prompt, max_new_tokens=1).wait().ids
    bias = ((banned, 3.0), (plain[0], -100.0))
    answer = Answer(engine, prompt, max_new_tokens=14, ignore_eos=True, logit_bias=bias, **options).wait()
    ids: list[int] = []
    for token in answer.ids:
        text = np.array([[*prompt, *ids]], np.int32)
        positions = np.arange(text.shape[1], dtype=np.int32)[None]
        hidden = hidden_states(CONFIG, params, text, positions, np.ones_like(text), attention=xla_attention)
        scores = np.array(logits(params, hidden)[0, -1], np.float64)
        scores[banned] += 3.0
        scores[plain[0]] -= 100.0
        for seen in {*prompt, *ids}:
            scores[seen] = scores[seen] / 1.1 if scores[seen] > 0 else scores[seen] * 1.1
        for seen in set(ids):
            scores[seen] -= 0.6 * ids.count(seen) + 0.4
        assert token == np.argmax(scores)
        ids.append(token)
    batch = Options(max_new_tokens=14, ignore_eos=True, logit_bias=bias, **options)
    assert generate(CONFIG, params, [prompt, prompt], batch, eos_id=EOS) == [ids, ids]
    assert ids != Answer(engine, prompt, max_new_tokens=14, ignore_eos=True).wait().ids
    with pytest.raises(UserError, match="logit_bias=6400 is no token: the vocabulary has 6400"):
        engine.submit(prompt, Options(logit_bias=((6400, 1.0),)), print)


@pytest.mark.parametrize("length", [1, 2, 17, 130, 513, 1200])  # read at once, or in pieces of 512 tokens
@pytest.mark.parametrize("max_new_tokens", [0, 3])
def test_log_probabilities_of_the_prompt_are_the_models(engine: Engine, params, length: int, max_new_tokens: int):
    [prompt] = prompts([length])
    options = dict(ignore_eos=True, top_logprobs=3)
    answer = Answer(engine, prompt, max_new_tokens=max_new_tokens, score_prompt=True, **options).wait()
    scored = [piece for piece in answer.pieces if piece.prompt is not None]
    assert len(scored) == 1 and (scored[0] is answer.pieces[0])
    ids = np.array([prompt], np.int32)
    positions = np.arange(length, dtype=np.int32)[None]
    hidden = hidden_states(CONFIG, params, ids, positions, np.ones_like(ids), attention=xla_attention)
    expected = np.asarray(jax.nn.log_softmax(logits(params, hidden)[0], axis=-1))
    assert [token.id for token in scored[0].prompt] == prompt[1:]
    for place, token in enumerate(scored[0].prompt):
        assert token.logprob == pytest.approx(expected[place, token.id], abs=1e-4)
        best = np.argsort(-expected[place])[:3]
        assert [i for i, _ in token.top] == best.tolist()
        np.testing.assert_allclose([x for _, x in token.top], expected[place, best], atol=1e-4)
    assert (answer.reason, len(answer.ids)) == ("length", max_new_tokens)
    if max_new_tokens:
        assert answer.ids == Answer(engine, prompt, max_new_tokens=3, ignore_eos=True).wait().ids


def test_scored_prompts_fill_the_whole_context_and_leave_no_rows(engine: Engine):
    full = prompts([CONFIG.max_seq_len])[0]
    answers = [Answer(engine, full[:n], max_new_tokens=0, score_prompt=True) for n in (2048, 1, 5, 5)]
    assert [len(answer.wait().pieces[0].prompt) for answer in answers] == [2047, 0, 4, 4]
    with pytest.raises(UserError, match="the limit for prompt and answer together is 2048"):
        engine.submit(full, Options(max_new_tokens=1, score_prompt=True), print)
    with pytest.raises(UserError, match="the limit for prompt and answer together is 2048"):
        engine.submit([*full, 1], Options(max_new_tokens=0, score_prompt=True), print)
    assert engine.n_running == engine.n_waiting == 0


def test_cancelling_frees_the_row_at_once(engine: Engine):
    running = Answer(engine, [1, 2], max_new_tokens=2000, ignore_eos=True)
    wait_until(lambda: len(running.pieces) > 3)
    running.request.cancel()
    assert running.wait().reason == "cancelled" and len(running.ids) < 1500
    wait_until(lambda: engine.n_running == 0)
    running.request.cancel()  # once more does no harm
    assert Answer(engine, [1, 2], max_new_tokens=3, ignore_eos=True).wait().reason == "length"


def test_limits(params):
    with Engine(CONFIG, params, TOKENIZER, max_batch=1, max_queue=2, max_context=40) as engine:
        first = Answer(engine, [1], max_new_tokens=39, ignore_eos=True)
        rest = []
        with pytest.raises(QueueFullError, match="2 requests are waiting"):
            for _ in range(9):
                rest.append(Answer(engine, [1, 2], max_new_tokens=2000, ignore_eos=True))
        for prompt, words in (
            ([], "empty"),
            ([1] * 40, "limit for prompt and answer together is 40"),
            ([-1], "outside"),
        ):
            with pytest.raises(UserError, match=words):
                engine.submit(prompt, Options(), print)
        assert len(first.wait().ids) == 39
        for answer in rest:
            assert len(answer.wait().ids) == 38 and answer.reason == "length"  # up to the context's end


def test_the_cache_is_bounded(params):
    """Long requests go one by one, and a short one behind them waits its turn."""
    with Engine(CONFIG, params, TOKENIZER, max_batch=8, max_slots=1024) as engine:
        long = [Answer(engine, [1] * 400, max_new_tokens=150, ignore_eos=True) for _ in range(2)]
        short = [Answer(engine, [1, 2], max_new_tokens=5, ignore_eos=True) for _ in range(6)]
        late = Answer(engine, [1] * 400, max_new_tokens=150, ignore_eos=True)  # the batch is wide when its turn comes
        for answer in [*long, *short, late]:
            assert answer.wait().reason == "length"
        sizes = [program[1:] for program in engine.statistics.programs if program[0] == "decode"]
        assert max(rows * slots for rows, slots in sizes) <= 1024
        assert (1, 1024) in sizes and len(sizes) > 1  # the long ones alone, the short ones together
        assert engine.is_alive
    assert not engine.is_alive


def test_closing_ends_everything(params):
    with Engine(CONFIG, params, TOKENIZER, max_batch=1) as engine:
        answers = [Answer(engine, [1, 2], max_new_tokens=2000, ignore_eos=True) for _ in range(3)]
        wait_until(lambda: answers[0].pieces)
    assert [answer.wait().reason for answer in answers] == ["cancelled"] * 3
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit([1], Options(), print)


@pytest.mark.parametrize("function", ["read_tokens", "read_prompts"])
def test_a_failing_program_ends_its_requests_and_not_the_engine(engine: Engine, monkeypatch, function: str):
    def broken(*args):
        raise RuntimeError("out of memory")

    works = getattr(decode, function)
    monkeypatch.setattr(decode, function, broken)
    prompt = [1, len(function), 3]  # not one that was just read
    failed = Answer(engine, prompt, max_new_tokens=5).wait()
    assert failed.reason == "error" and "out of memory" in failed.pieces[-1].error
    monkeypatch.setattr(decode, function, works)
    assert Answer(engine, prompt, max_new_tokens=5, ignore_eos=True).wait().reason == "length"


def test_the_choices_of_one_prompt_read_it_once(engine: Engine, monkeypatch):
    prompt, other = prompts([41, 42])
    calls, read = [], decode.read_prompts
    monkeypatch.setattr(decode, "read_prompts", lambda *args: calls.append(1) or read(*args))
    options = {"max_new_tokens": 12, "temperature": 1.0, "ignore_eos": True}
    answers = [Answer(engine, prompt, seed=seed, **options) for seed in range(4)]
    ids = [answer.wait().ids for answer in answers]
    assert len(calls) == 1 and len(set(map(tuple, ids))) == 4
    Answer(engine, other, **options).wait()
    assert Answer(engine, prompt, seed=2, **options).wait().ids == ids[2] and len(calls) == 3


def test_a_callback_that_fails_harms_nobody_else(engine: Engine):
    def fail(piece: Piece) -> None:
        raise ValueError("the client is gone")

    other = Answer(engine, [1, 3], max_new_tokens=40, ignore_eos=True)
    engine.submit([1, 2], Options(max_new_tokens=5), fail)
    assert other.wait().reason == "length" and len(other.ids) == 40
    wait_until(lambda: engine.n_running == 0)


def test_few_programs_are_compiled_whatever_is_asked(engine: Engine):
    """After all tests of this module: powers of two only, bounded by sizes and not by requests."""
    rng = np.random.default_rng(5)
    answers = [
        Answer(
            engine, [1] * int(rng.integers(1, 400)), max_new_tokens=int(rng.integers(1, 30)), top_k=int(rng.integers(9))
        )
        for _ in range(24)
    ]
    for answer in answers:
        answer.wait()
    programs = engine.statistics.programs
    assert all(size & (size - 1) == 0 for _, *sizes in programs for size in sizes)
    assert len([kind for kind, *_ in programs if kind == "decode"]) <= 4 * 5  # rows 1..8, slots 128..2048
    assert len([kind for kind, *_ in programs if kind == "prompt"]) <= 6 + 2  # 16..512, and 512 of 1024 and of 2048


def test_the_batch_shrinks_again(params, monkeypatch):
    monkeypatch.setattr(engine_module, "_PATIENCE", 2)
    with Engine(CONFIG, params, TOKENIZER, max_batch=8) as engine:
        long = Answer(engine, [1, 7], max_new_tokens=200, ignore_eos=True)
        for answer in [Answer(engine, [1, i], max_new_tokens=3, ignore_eos=True) for i in range(2, 9)]:
            answer.wait()
        wait_until(lambda: ("decode", 1, 128) in engine.statistics.programs)
        sizes = {program[1] for program in engine.statistics.programs if program[0] == "decode"}
        assert 1 in sizes and max(sizes) > 1
        expected = generate(CONFIG, params, [[1, 7]], Options(max_new_tokens=200, ignore_eos=True), eos_id=EOS)[0]
        assert long.wait().ids == expected
