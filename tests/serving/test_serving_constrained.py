"""Answers whose form the request fixes: a tiny model of random weights calls what it must and writes valid JSON."""

import dataclasses
import json

import jsonschema
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_helpers import CONFIG, TOKENIZER, question, served, tiny_params

from minimind_jax.inference import Engine

MODEL = "tiny"
THINK = {"enable_thinking": True}

WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "北京"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
SUM = {
    "type": "object",
    "properties": {"terms": {"type": "array", "items": {"$ref": "#/$defs/term"}, "minItems": 1, "maxItems": 2}},
    "required": ["terms"],
    "additionalProperties": False,
    "$defs": {"term": {"type": "integer", "minimum": 0, "maximum": 99}},
}
SCHEMAS = {"get_weather": WEATHER, 'add "汉"': SUM}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": schema, "strict": True}}
    for name, schema in SCHEMAS.items()
]
COLOUR = {"type": "object", "properties": {"colour": {"enum": ["red", "绿"]}, "n": {"type": "null"}},
          "required": ["colour", "n"], "additionalProperties": False}  # fmt: skip
FORMAT = {"type": "json_schema", "json_schema": {"name": "colour", "schema": COLOUR, "strict": True}}


def named(name):
    return {"type": "function", "function": {"name": name}}


@pytest.fixture(scope="module")
def engine():
    config = dataclasses.replace(CONFIG, max_seq_len=2048)  # the signatures of functions are long
    with Engine(config, tiny_params(), TOKENIZER, max_batch=4) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine):
    with served(engine) as port:
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)


def chat(client, text="hi", **options):
    return client.chat.completions.create(
        model=MODEL, **{"temperature": 1.5, "max_tokens": 300, **question(text), **options}
    )


def check_call(call):
    assert call.type == "function"
    jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("extra", [{}, THINK])
def test_a_required_call(client, seed, extra):
    bias = {str(TOKENIZER.encode_rendered("</think>")[0]): 30} if extra else {}  # or it would think to the limit
    answer = chat(
        client,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        seed=seed,
        logit_bias=bias,
        extra_body=extra,
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls
    check_call(call)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_named_call(client, name):
    for seed in range(4):
        (choice,) = chat(client, tools=TOOLS, tool_choice=named(name), seed=seed).choices
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        (call,) = choice.message.tool_calls
        assert call.function.name == name
        check_call(call)


def test_several_calls_where_they_are_allowed(client):
    bias = {str(token): 8 for token in TOKENIZER.encode("\n")}  # one more call rather than the end
    (choice,) = chat(client, tools=TOOLS, tool_choice="required", logit_bias=bias, max_tokens=200, seed=2).choices
    assert len(choice.message.tool_calls) > 1
    for call in choice.message.tool_calls:
        check_call(call)


def test_a_forced_call_in_a_stream(client):
    chunks = list(chat(client, tools=TOOLS, tool_choice=named("get_weather"), stream=True, seed=1))
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    (call,) = [call for delta in deltas for call in delta.tool_calls or []]
    check_call(call)
    assert "".join(delta.content or "" for delta in deltas) == ""
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_functions_without_parameters(client):
    tools = [{"type": "function", "function": {"name": "now"}}, {"type": "function", "function": {"name": "later",
             "parameters": {"properties": {}, "additionalProperties": False}}}]  # fmt: skip
    for name in ("now", "later"):
        (choice,) = chat(client, tools=tools, tool_choice=named(name), temperature=0, max_tokens=120).choices
        if choice.finish_reason == "tool_calls":
            assert isinstance(json.loads(choice.message.tool_calls[0].function.arguments), dict)
        else:
            assert choice.finish_reason == "length"  # any object may be long
    assert choice.message.tool_calls[0].function.arguments == "{}"


def test_a_schema_for_the_answer(client):
    answer = chat(client, response_format=FORMAT, n=5, seed=3)
    values = [json.loads(choice.message.content) for choice in answer.choices]
    for choice, value in zip(answer.choices, values, strict=True):
        jsonschema.validate(value, COLOUR)
        assert choice.finish_reason == "stop"
    assert {value["colour"] for value in values} == {"red", "绿"}
    again = chat(client, response_format=FORMAT, n=5, seed=3)
    assert [choice.message.content for choice in again.choices] == [choice.message.content for choice in answer.choices]
    chunks = list(chat(client, response_format=FORMAT, stream=True, seed=3))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == answer.choices[0].message.content


def test_a_schema_after_thoughts(client):
    bias = {str(TOKENIZER.encode_rendered(mark)[0]): 30 for mark in ("<think>", "</think>")}
    (choice,) = chat(client, response_format=FORMAT, logit_bias=bias, extra_body=THINK).choices
    jsonschema.validate(json.loads(choice.message.content), COLOUR)
    assert choice.finish_reason == "stop"
    bias[str(TOKENIZER.encode_rendered("</think>")[0])] = -100
    (choice,) = chat(client, response_format=FORMAT, logit_bias=bias, max_tokens=20, extra_body=THINK).choices
    assert choice.finish_reason == "length"
    assert choice.message.reasoning_content and not choice.message.content


def test_any_json_object(client):
    closing = {str(TOKENIZER.encode("}")[0]): 100, str(TOKENIZER.encode("{}")[0]): 100}
    (choice,) = chat(client, response_format={"type": "json_object"}, logit_bias=closing).choices
    assert (json.loads(choice.message.content), choice.finish_reason) == ({}, "stop")
    (choice,) = chat(client, response_format={"type": "json_object"}, max_tokens=5).choices
    assert choice.message.content.startswith("{") and choice.finish_reason in ("length", "stop")


def test_json_or_calls_as_the_model_likes(client):
    opening = TOKENIZER.encode_rendered("<tool_call>")[0]
    options = {"tools": TOOLS, "response_format": FORMAT, "parallel_tool_calls": False}
    (choice,) = chat(client, logit_bias={str(opening): -100}, **options).choices
    jsonschema.validate(json.loads(choice.message.content), COLOUR)
    assert (choice.finish_reason, choice.message.tool_calls) == ("stop", None)
    (choice,) = chat(client, logit_bias={str(opening): 100}, **options).choices
    check_call(choice.message.tool_calls[0])
    assert choice.finish_reason == "tool_calls"
    for seed in range(4):
        (choice,) = chat(client, tool_choice="required", seed=seed, **options).choices
        assert choice.message.tool_calls and choice.message.content is None
    (choice,) = chat(client, tools=TOOLS, tool_choice="none", response_format=FORMAT).choices
    jsonschema.validate(json.loads(choice.message.content), COLOUR)


def test_logprobs_are_the_models_own(client):
    """Under the model itself: what the grammar leaves no choice about is still unlikely."""
    (choice,) = chat(client, response_format=FORMAT, logprobs=True, top_logprobs=2, temperature=0).choices
    entries = choice.logprobs.content
    assert "".join(entry.token for entry in entries) == choice.message.content
    assert sum(entry.logprob < entry.top_logprobs[0].logprob for entry in entries) > len(entries) / 2


def test_completions(client):
    answer = client.completions.create(
        model=MODEL, prompt=["a", "b"], max_tokens=60, temperature=1.5, n=2, extra_body={"response_format": FORMAT}
    )
    for choice in answer.choices:
        jsonschema.validate(json.loads(choice.text), COLOUR)


def test_a_limit_and_a_stop_text_cut_it(client):
    (choice,) = chat(client, response_format=FORMAT, max_tokens=4).choices
    assert choice.finish_reason == "length" and choice.message.content.startswith('{"')
    (choice,) = chat(client, tools=TOOLS, tool_choice="required", max_tokens=4).choices
    assert choice.finish_reason == "length" and not choice.message.tool_calls
    (choice,) = chat(client, response_format=FORMAT, stop=":").choices
    assert (choice.finish_reason, choice.message.content) == ("stop", '{"colour"')


LEAVES = st.sampled_from(
    [{"type": "boolean"}, {"type": "string", "maxLength": 3}, {"enum": ["<think>", 1, "</think>汉"]}]
)
PARAMETERS = st.dictionaries(st.sampled_from(["a", "名", "<tool_call>", "\n</tool_call>"]), LEAVES, max_size=3).map(
    lambda p: {"type": "object", "properties": p, "required": list(p)[:2], "additionalProperties": False}
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(schema=PARAMETERS, seed=st.integers(0, 2**31))
def test_what_is_finished_is_valid(client, schema, seed):
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    (choice,) = chat(client, tools=[tool], tool_choice="required", parallel_tool_calls=False, seed=seed).choices
    jsonschema.validate(json.loads(choice.message.tool_calls[0].function.arguments), schema)
    form = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
    (choice,) = chat(client, response_format=form, seed=seed).choices
    assert choice.finish_reason == "stop"
    jsonschema.validate(json.loads(choice.message.content), schema)
