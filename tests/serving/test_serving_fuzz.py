"""Whatever comes in, the server answers with 2xx or with 4xx and an error body."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_helpers import application, tiny_engine
from starlette.testclient import TestClient

from minimind_jax.serving import Settings
from minimind_jax.serving.requests import ChatRequest, CompletionRequest

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["<|im_end|>", "\ud800", "user", "assistant", "tool", "function", "text", "汉🙂", "{}", "[]"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "function", "name", "arguments", "text"]), inner)
    ),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer"]), "content": st.text() | VALUES},
        optional={"tool_calls": VALUES, "reasoning_content": VALUES, "name": VALUES},
    ),
    min_size=1,
    max_size=3,
)
NAMES = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, "best_of", "user"} - {"messages", "prompt"})
KEYWORDS = "type properties required items enum const anyOf allOf $ref $defs pattern format minimum maxItems x-guidance"
SCHEMAS = st.recursive(
    VALUES | st.sampled_from(["object", "array", "string", "integer", "number", "null", "#", "#/$defs/a", "^a+$"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([*KEYWORDS.split(), "a"]), inner),
    max_leaves=12,
)
# Known objects with something in them, as noise alone hardly ever makes one.
SHAPED = st.fixed_dictionaries(
    {},
    optional={
        "response_format": st.fixed_dictionaries(
            {"type": st.sampled_from(["json_schema", "json_object", "text"])},
            optional={"json_schema": st.fixed_dictionaries({"schema": SCHEMAS}, optional={"strict": VALUES})},
        ),
        "tools": st.lists(
            st.builds(
                lambda name, parameters: {"type": "function", "function": {"name": name, "parameters": parameters}},
                st.sampled_from(["f", "<tool_call>", '"', "\n", "汉\x01"]) | st.text(min_size=1, max_size=4),
                SCHEMAS,
            ),
            max_size=2,
        ),
        "tool_choice": st.sampled_from(["required", "auto", "none", {"type": "function", "function": {"name": "f"}}]),
        "logit_bias": st.dictionaries(
            st.integers(-1, 6401).map(str), st.floats(-101, 101) | st.integers(-2, 2), max_size=3
        ),
        "continue_final_message": st.booleans(),
        "chat_template_kwargs": st.dictionaries(st.sampled_from(["enable_thinking", "self", "tools", "x"]), VALUES),
        "frequency_penalty": st.floats(-2, 2),
        "echo": st.booleans(),
        "logprobs": st.integers(0, 5) | st.booleans(),
        "enable_thinking": st.booleans(),
    },
)
FIELDS = st.builds(
    lambda shaped, noise: {**shaped, **noise},
    SHAPED | st.just({}),
    st.dictionaries(st.sampled_from(NAMES), VALUES | st.integers(0, 3), max_size=3) | st.just({}),
)


@pytest.fixture(scope="module")
def client():
    with (
        tiny_engine() as engine,
        TestClient(application(engine, Settings(max_tokens=2)), raise_server_exceptions=False) as client,
    ):
        yield client


def check_answer(client: TestClient, path: str, body: object) -> None:
    # A limit of its own, as an answer of 500 tokens would only take long.
    if isinstance(body, dict) and isinstance(body.get("max_tokens"), int):
        body = {**body, "max_tokens": min(body["max_tokens"], 3)}
    response = client.post(path, content=json.dumps(body).encode())
    assert response.status_code < 500, response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]
    elif isinstance(body, dict) and body.get("stream") is True:
        assert response.text.endswith("data: [DONE]\n\n")
    else:
        assert response.json()["choices"]


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@FUZZ
@given(body=VALUES | st.builds(lambda m, f: {"messages": m, **f}, MESSAGES, FIELDS))
def test_no_chat_body_breaks_the_server(client, body):
    check_answer(client, CHAT, body)


@pytest.mark.slow
@FUZZ
@given(body=st.builds(lambda p, f: {"prompt": p, **f}, VALUES | st.text() | st.lists(st.integers(-1, 6400)), FIELDS))
def test_no_completion_body_breaks_the_server(client, body):
    check_answer(client, COMPLETIONS, body)


@FUZZ
@given(body=st.binary(max_size=60))
def test_no_bytes_break_the_server(client, body):
    response = client.post(CHAT, content=body)
    assert response.status_code == 400 and response.json()["error"]["message"]
