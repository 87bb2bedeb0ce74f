"""Answers that follow a grammar: what random weights write is valid, whoever else is in the batch."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterator
from typing import Any

import jax
import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.inference import Engine, Options, Piece
from minimind_jax.inference.constraint import Constraint, Grammars
from minimind_jax.model import abstract_params
from minimind_jax.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer()
# More logits than the tokenizer has entries, and no multiple of 32.
CONFIG = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=6413, max_seq_len=512)
CHOICE = {"enum": ["red", "绿色", 7, None, True]}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), abstract_params(CONFIG))
    with Engine(CONFIG, params, TOKENIZER, max_batch=8) as engine:
        yield engine


class Answer:
    def __init__(self, engine: Engine, schema: Any = None, prompt: tuple[int, ...] = (1, 5, 9), **options: Any) -> None:
        grammar = "" if schema is None else f"start: {engine.grammars.json_rule(schema)}"
        self._pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        engine.submit(prompt, Options(**{"max_new_tokens": 60, **options}, grammar=grammar), self._pieces.put)
        self.ids: list[int] = []
        self.text = ""
        self.last: Piece | None = None

    def wait(self) -> Answer:
        while self.last is None:
            piece = self._pieces.get(timeout=120)
            self.text += piece.text
            self.ids += [token.id for token in piece.tokens]
            self.last = piece if piece.finish_reason else None
        return self

    @property
    def reason(self) -> str:
        return self.wait().last.finish_reason


# Whatever the random weights write, these come to an end.
LEAVES = st.sampled_from(
    [{"type": "boolean"}, {"type": "null"}, CHOICE, {"const": {"a": "<tool_call>"}}, {"type": "integer", "maximum": 9,
     "minimum": -3}, {"type": "string", "maxLength": 4}, {"type": "string", "pattern": "^[a-c]{2}汉?$"}]
)  # fmt: skip
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: (
        st.dictionaries(st.sampled_from(["a", "b c", "名", 'q"\n', "</think>"]), inner, max_size=3).map(
            lambda p: {"type": "object", "properties": p, "required": list(p), "additionalProperties": False}
        )
        | inner.map(lambda i: {"type": "array", "items": i, "minItems": 1, "maxItems": 2})
        | st.lists(inner, min_size=1, max_size=2).map(lambda i: {"anyOf": i})
    ),
    max_leaves=4,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32 - 1), temperature=st.sampled_from([0.0, 1.0, 3.0]))
def test_what_ends_is_valid(engine: Engine, schema, seed, temperature):
    shared = dict(seed=seed, temperature=temperature)
    answers = [
        Answer(engine, schema, max_new_tokens=400, **shared),
        Answer(engine, schema, max_new_tokens=400, top_k=2, frequency_penalty=1.0, repetition_penalty=1.3, **shared),
    ]
    for answer in answers:
        assert answer.reason == "stop"
        jsonschema.validate(json.loads(answer.text), schema)
        plain = "\\" not in answer.text and "-0" not in answer.text  # JSON has several ways to write those
        assert not plain or answer.text == json.dumps(json.loads(answer.text), ensure_ascii=False)


def test_a_limit_cuts_it(engine: Engine):
    answer = Answer(engine, {"type": "array", "items": {"type": "integer"}, "minItems": 50}, max_new_tokens=9)
    assert answer.reason == "length" and len(answer.ids) == 9 and answer.text.startswith("[")
    exact = Answer(engine, {"const": True}, max_new_tokens=1)
    assert (exact.reason, exact.text) == ("stop", "true") if len(exact.ids) == 1 else exact.reason == "length"


@pytest.mark.slow
def test_the_others_do_not_notice(engine: Engine):
    free = dict(max_new_tokens=40, temperature=1.0, ignore_eos=True)
    alone = [Answer(engine, prompt=(1, i), seed=i, **free).wait().ids for i in range(3)]
    constrained_alone = [Answer(engine, CHOICE, seed=i, temperature=1.0).wait().ids for i in range(4)]
    mixed = []
    for i in range(4):
        mixed.append(Answer(engine, CHOICE, seed=i, temperature=1.0))
        if i < 3:
            mixed.append(Answer(engine, prompt=(1, i), seed=i, **free))
        time.sleep(0.02)
    assert [answer.wait().ids for answer in mixed[1::2]] == alone
    assert [answer.wait().ids for answer in mixed[::2]] == constrained_alone


def test_greedy_takes_the_likeliest_that_is_allowed(engine: Engine):
    """Against the logits of every step, as reported, and a matcher of the test's own."""
    schema = {"type": "string", "pattern": "^[a-z]{1,6}$"}
    answer = Answer(engine, schema)
    assert answer.reason == "stop"
    constraint = engine.grammars.constraint(f"start: {engine.grammars.json_rule(schema)}")
    for place, token in enumerate(answer.ids):
        mask = engine.grammars.free_masks(1)[0]
        constraint.fill(mask)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        assert max(allowed) < TOKENIZER.vocab_size
        # Weighing all else down by bias finds the same token without any grammar.
        best = []
        for start in range(0, len(allowed), 1000):
            bias = tuple((int(i), 100.0) for i in allowed[start : start + 1000])
            best += Answer(engine, prompt=(1, 5, 9, *answer.ids[:place]), max_new_tokens=1, logit_bias=bias).wait().ids
        assert token in best or (not best and token == TOKENIZER.eos_id)
        constraint.push(token)


def test_plain_rounds_use_no_masks(engine: Engine):
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), abstract_params(CONFIG))
    with Engine(CONFIG, params, TOKENIZER) as own:
        Answer(own, max_new_tokens=5).wait()
        assert not {program[0] for program in own.statistics.programs} & {"constrained choice"}
        Answer(own, CHOICE).wait()
        assert ("constrained choice", 1) in own.statistics.programs


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("start: [", "Expected"),
        ('start: "a" & "b"', "&"),
        ("start: nowhere", "nowhere"),
        ("start: /a(?=b)/", "look-around"),
    ],
)
def test_grammars_that_are_none(engine: Engine, grammar, message):
    with pytest.raises(UserError) as error:
        engine.submit([1, 2], Options(grammar=grammar), print)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_error_on_the_way_ends_the_request_and_nobody_else(engine: Engine, monkeypatch):
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 20, "maxItems": 20}
    fill, calls = Constraint.fill, []

    def stuck(self: Constraint, mask: np.ndarray) -> None:
        fill(self, mask)
        calls.append(1)
        if len(calls) > 5:
            mask[:] = 0
            self._is_stuck = True

    other = Answer(engine, prompt=(1, 3), max_new_tokens=30, ignore_eos=True)
    engine.grammars.constraint(f"start: {engine.grammars.json_rule(schema)}")
    monkeypatch.setattr(Constraint, "fill", stuck)
    answer = Answer(engine, schema)
    assert answer.reason == "error" and answer.last.error == "no token can follow"
    assert other.reason == "length" and len(other.ids) == 30


def test_marks_are_tokens_or_text():
    grammars = Grammars(TOKENIZER, CONFIG.vocab_size)
    assert grammars.mark("</think>") == f"<[{TOKENIZER.encode_rendered('</think>')[0]}]>"
    assert grammars.mark("</other>") == '"</other>"'
    assert grammars.mark("a") == '"a"'
