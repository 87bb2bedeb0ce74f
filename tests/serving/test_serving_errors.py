"""What goes wrong has OpenAI's error body, the right status, and no effect on anybody else."""

import http.client
import json
import socket
import threading
import time

import pytest
from serving_helpers import TOOL, ScriptedEngine, ask, question, served, tiny_engine, wait_for

from minimind_jax.inference.request import Piece, QueueFullError
from minimind_jax.serving import ServedModel, Settings

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def port():
    with served(ScriptedEngine("fine")) as port:
        yield port


def check_error(response, status, code=None, param=None):
    assert response.status == status, response.body
    assert response.headers["content-type"] == "application/json"
    error = response.body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert "Traceback" not in error["message"]
    return error["message"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (CHAT, b"{", "the body is not JSON: Expecting property name enclosed in double quotes, line 1 column 2"),
        (CHAT, b"", "the body is not JSON"),
        (CHAT, b"[]", "the body must be a JSON object"),
        (CHAT, b"\xff\xfe", "the body is not UTF-8 text (byte 0)"),
        (CHAT, b'{"temperature": NaN}', "NaN is no JSON number"),
        (CHAT, b'{"temperature": 1e999, "messages": [{"role": "user", "content": "hi"}]}', "`temperature`"),
        (CHAT, b'{"seed": ' + b"9" * 5000 + b"}", "the body is not usable JSON"),
        (CHAT, b"[" * 50_000, "the body is not usable JSON: it is nested too deeply"),
        (CHAT, b'{"messages": ' + b"[" * 80 + b"]" * 80 + b"}", "`messages` is nested more than 64 levels deep"),
        (CHAT, b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "`messages` has half of a \\u surrogate"),
        (CHAT, b'{"\\ud800": 1}', "`a field's name` has half"),
    ],
)
def test_bodies_that_are_no_request(port, path, body, message):
    response = ask(port, "POST", path, body)
    assert response.status == 400
    assert message in response.body["error"]["message"]


TEXT = question()["messages"]
ASSISTANT_CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{]"}}]}
GOOD = {"function": {"name": "f", "arguments": "{}"}}
GOOD_CALL = {"role": "assistant", "tool_calls": [GOOD]}
UNFINISHED = [*TEXT, {"role": "assistant", "content": "Once"}]
ENDLESS = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"], "additionalProperties": False}


def _named(name):
    return {"type": "function", "function": {"name": name}}


def _tool(parameters):
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


def _format(schema):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "messages", "`messages`: field required"),
        ({"messages": "hi"}, "messages", "valid list"),
        ({"messages": []}, "messages", "`messages` is empty"),
        ({"messages": ["hi"]}, "messages[0]", "valid dictionary"),
        ({"messages": [{}]}, "messages[0].role", "`messages[0]` lacks `role`, has no field at all"),
        (
            {"messages": [{"role": "bot", "content": ""}]},
            "messages[0].role",
            "not one of system, user, assistant, tool",
        ),
        ({"messages": [*TEXT, {"role": "user"}]}, "messages[1].content", "is missing"),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "messages[0].content",
            "not a string (nor a list of text parts)",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "this model reads text only",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "a string"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content", "is empty"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [GOOD]}]}, "messages[0].tool_calls", "only the"),
        ({"messages": [ASSISTANT_CALL]}, "messages[0].tool_calls[0].function.arguments", "is not JSON"),
        ({"messages": [{"role": "assistant", "tool_calls": 3}]}, "messages[0].tool_calls", "is not a list"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{}]}]},
            "messages[0].tool_calls[0].name",
            "lacks `name`",
        ),
        (
            {"messages": [{"role": "assistant", "function_call": {}}]},
            "messages[0].function_call[0].name",
            "lacks `name`",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "reasoning_content": 3}]},
            "messages[0].reasoning_content",
            "",
        ),
        (question(tools=[{}]), "tools[0].name", "lacks `name`"),
        (question(tools=[{"type": "web_search"}]), "tools[0].type", "only functions can be called"),
        (question(tools={}), "tools", "valid list"),
        (question(tools=[TOOL], tool_choice="always"), "tool_choice", "'auto', 'none' or 'required'"),
        (question(tools=[TOOL], tool_choice={"type": "custom"}), "tool_choice.type", "'function'"),
        (question(tools=[TOOL], tool_choice=_named("g")), "tool_choice", "names 'g', which is none of the `tools`"),
        (question(tool_choice="required"), "tool_choice", "there are no `tools`"),
        (question(tools=[], tool_choice=_named("f")), "tool_choice", "there are no `tools`"),
        (
            question(tools=[_tool({"type": "array"})], tool_choice="required"),
            "tools[0].function.parameters",
            "schema of an object",
        ),
        (question(tools=[_tool([])], tool_choice="required"), "tools[0].function.parameters", "schema of an object"),
        (question(tools=[_tool({"not": {}})], tool_choice="required"), "tools", 'Unimplemented keys: ["not"]'),
        (question(response_format="json"), "response_format", "valid dictionary"),
        (question(response_format={}), "response_format.type", "field required"),
        (question(response_format={"type": "xml"}), "response_format.type", "'json_schema'"),
        (question(response_format={"type": "json_schema"}), "response_format.json_schema", "is missing"),
        (question(response_format=_format(None)), "response_format.json_schema.schema", "field required"),
        (question(response_format=_format({"enum": []})), "response_format", "Unsatisfiable schema"),
        (question(response_format=_format({"type": "frob"})), "response_format", "Invalid type: frob"),
        (question(response_format=_format({"pattern": "(?=x)", "type": "string"})), "response_format", "regex"),
        (question(response_format=_format({"$ref": "#/$defs/x"})), "response_format", "cannot be followed"),
        (question(response_format=_format(ENDLESS)), "response_format", "cannot be followed"),
        (question(response_format=_format({}), ignore_eos=True), "ignore_eos", "goes on where a grammar ends"),
        (question(frequency_penalty=2.5), "frequency_penalty", "at most 2"),
        (question(presence_penalty=-3), "presence_penalty", "of at least -2"),
        (question(presence_penalty="1"), "presence_penalty", "valid number"),
        (question(logit_bias={"x": 1}), "logit_bias", "'x', which is no token id"),
        (question(logit_bias={"9" * 5000: 1}), "logit_bias", "no token id"),
        (question(logit_bias={"-1": 1}), "logit_bias", "no token id"),
        (question(logit_bias={"5": 101}), "logit_bias", "at most 100"),
        (question(logit_bias={str(i): 1 for i in range(1025)}), "logit_bias", "the limit is 1024"),
        (question(logit_bias=[5]), "logit_bias", "valid dictionary"),
        (question(add_generation_prompt=False), "add_generation_prompt", "needs `continue_final_message`"),
        (question(continue_final_message=True), "messages", "a last message of the assistant"),
        (
            {"messages": [*TEXT, GOOD_CALL], "continue_final_message": True},
            "messages",
            "without tool calls",
        ),
        (
            {"messages": UNFINISHED, "continue_final_message": True, "add_generation_prompt": True},
            "add_generation_prompt",
            "`add_generation_prompt`: false",
        ),
        (
            {"messages": UNFINISHED, "continue_final_message": True, "response_format": {"type": "json_object"}},
            "continue_final_message",
            "neither a `response_format`",
        ),
        (question(temperature="hot"), "temperature", "valid number"),
        (question(temperature=-1), "temperature", "must be a number of at least 0"),
        (question(top_p=0), "top_p", "above 0"),
        (question(top_k=-2), "top_k", "at least 0"),
        (question(top_k=True), "top_k", "valid integer"),
        (question(n=0), "n", "greater than or equal to 1"),
        (question(n=129), "n", "less than or equal to 128"),
        (question(max_tokens=0), "max_tokens", "greater than or equal to 1"),
        (question(max_tokens=2.5), "max_tokens", "valid integer"),
        (question(stop=[""]), "stop", "not empty"),
        (question(stop=[3]), "stop[0]", "valid string"),
        (question(stop=["x"] * 17), "stop", "at most 16"),
        (question(stream="yes"), "stream", "valid boolean"),
        (question(stream_options={"include_usage": 3}), "stream_options.include_usage", "valid boolean"),
        (question(stream_options=3), "stream_options", "valid"),
        (question(top_logprobs=2), "top_logprobs", "needs `logprobs`"),
        (question(logprobs=True, top_logprobs=21), "top_logprobs", "from -1 to 20"),
        (question(chat_template_kwargs={"messages": []}), "chat_template_kwargs.messages", "would replace"),
        (question(chat_template_kwargs={"self": 1}), "chat_template_kwargs.self", "would replace"),
        (question(chat_template_kwargs={"enable_thinking": 1}), "chat_template_kwargs.enable_thinking", "boolean"),
        (question(reasoning_effort="huge"), "reasoning_effort", "'none'"),
    ],
)
def test_chat_fields(port, body, param, message):
    assert message in check_error(ask(port, "POST", CHAT, body), 400, None, param)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "prompt", "field required"),
        ({"prompt": []}, "prompt", "`prompt` is empty"),
        ({"prompt": [[]]}, "prompt", "without tokens"),
        ({"prompt": [6400]}, "prompt", "holds the token 6400, but the vocabulary has 6400"),
        ({"prompt": [-1]}, "prompt", "holds the token -1"),
        ({"prompt": ["x"] * 65, "n": 2}, "prompt", "more than 128 texts"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens", "needs `echo`: true"),
        ({"prompt": "x", "max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"prompt": "x", "response_format": {"type": "json_schema"}}, "response_format.json_schema", "is missing"),
        ({"prompt": "x", "logprobs": True}, "logprobs", "valid integer"),
        ({"prompt": "x", "logprobs": 21}, "top_logprobs", "from -1 to 20"),
        ({"prompt": {"a": 1}}, "prompt", "valid"),
        ({"prompt": ["x", 3]}, "prompt[1]", "valid string"),
    ],
)
def test_completion_fields(port, body, param, message):
    assert message in check_error(ask(port, "POST", COMPLETIONS, body), 400, None, param)


@pytest.mark.parametrize(
    ("field", "harmless", "harmful"),
    [
        ("best_of", 1, 3),
        ("suffix", "", "end"),
        ("min_tokens", 0, 5),
        ("functions", [], [{"name": "f"}]),
        ("guided_json", None, {}),
        ("chat_template", None, "{{ 7 * 7 }}"),
    ],
)
def test_unsupported_fields_are_refused_where_they_would_change_the_answer(port, field, harmless, harmful):
    assert ask(port, "POST", CHAT, question(**{field: harmless})).status == 200
    message = check_error(ask(port, "POST", CHAT, question(**{field: harmful})), 400, "unsupported_parameter", field)
    assert f"`{field}` is not supported" in message


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "me", "store": False, "metadata": {"a": 1}, "service_tier": "auto", "model": None, "n": None},
        {"stream_options": {"include_usage": None}, "stop": None, "seed": None, "temperature": None, "user": None},
        {"stream_options": {"include_usage": None, "include_obfuscation": False}, "stream": None, "model": ""},
        {"logprobs": False, "top_logprobs": 0, "stop": [], "logit_bias": {}, "parallel_tool_calls": None},
        {"logprobs": None, "top_logprobs": None, "stop": "", "logit_bias": None, "metadata": None, "store": None},
        {"logprobs": None, "top_logprobs": 0, "tools": None, "tool_choice": None, "functions": None},
        {"tools": [], "tool_choice": "auto", "response_format": None, "frequency_penalty": None},
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text", "json_schema": None}},
        {"tools": [TOOL], "tool_choice": "none", "parallel_tool_calls": False, "presence_penalty": 0},
        {"chat_template_kwargs": {"enable_thinking": None, "open_thinking": None, "other": None}},
        {"chat_template_kwargs": {"style": "plain", "depth": [1, {"a": None}]}, "add_generation_prompt": True},
        {"continue_final_message": None, "add_generation_prompt": None, "reasoning_effort": None, "best_of": 1},
        {"response_format": {"type": "json_object", "json_schema": None}, "max_completion_tokens": None},
    ],
)
def test_neutral_and_unknown_fields_do_not_matter(port, fields):
    assert ask(port, "POST", CHAT, question(**fields)).status == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": None, "echo": None, "suffix": None, "best_of": None, "user": ""},
        {"stream_options": {"include_usage": None}, "logit_bias": {}, "suffix": "", "echo": False},
        {"stop": "", "response_format": {"type": "text"}, "max_tokens": None},
    ],
)
def test_so_in_completions(port, fields):
    assert ask(port, "POST", COMPLETIONS, {"prompt": "x", **fields}).status == 200


def test_paths_methods_and_models(port):
    assert "GET /nowhere: not found" in check_error(ask(port, "GET", "/nowhere"), 404)
    response = ask(port, "GET", CHAT)
    assert "method not allowed, use POST" in check_error(response, 405)
    assert response.headers["allow"] == "POST"
    check_error(ask(port, "POST", "/health"), 405)
    message = check_error(ask(port, "POST", CHAT, question(model="gpt-9")), 404, "model_not_found", "model")
    assert message == "there is no model 'gpt-9' here: this server has 'tiny'"
    check_error(ask(port, "GET", "/v1/models/gpt-9"), 404, "model_not_found", "model")
    assert ask(port, "GET", "/health").body == {"status": "ok", "model": "tiny", "models": ["tiny"]}


def test_a_server_with_several_names():
    models = [ServedModel(ScriptedEngine("fine"), ("tiny", "gpt-4o", "org/tiny"))]
    with served(models) as port:
        assert [card["id"] for card in ask(port, "GET", "/v1/models").body["data"]] == ["tiny", "gpt-4o", "org/tiny"]
        for name in ("tiny", "gpt-4o", "org/tiny"):
            assert ask(port, "GET", f"/v1/models/{name}").body["id"] == name
            assert ask(port, "POST", CHAT, question(model=name)).body["model"] == name
        assert ask(port, "POST", CHAT, question()).body["model"] == "tiny"
        message = check_error(ask(port, "POST", CHAT, question(model="gpt-9")), 404, "model_not_found", "model")
        assert message == "there is no model 'gpt-9' here: this server has 'tiny' and 'gpt-4o' and 'org/tiny'"


def test_a_server_that_answers_to_every_name():
    with served(ScriptedEngine("fine"), Settings(any_name=True)) as port:
        assert ask(port, "POST", CHAT, question(model="gpt-9")).body["model"] == "gpt-9"
        assert ask(port, "POST", COMPLETIONS, {"prompt": "x", "model": "汉"}).body["model"] == "汉"
        assert ask(port, "GET", "/v1/models/gpt-9").body["id"] == "gpt-9"
        assert [card["id"] for card in ask(port, "GET", "/v1/models").body["data"]] == ["tiny"]


def test_health_says_so_when_nothing_is_answered_any_more():
    engine = ScriptedEngine("fine")
    with served(engine) as port:
        engine.is_alive = False
        check_error(ask(port, "GET", "/health"), 503, "engine_error")


def test_errors_are_counted_by_status(port):
    ask(port, "GET", "/some/where")
    text = ask(port, "GET", "/metrics").body.decode()
    assert 'minimind_requests_total{endpoint="other",status="404"}' in text
    assert "/some/where" not in text  # strangers cannot make series without end


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, question("word " * 600), "messages"),
        (CHAT, question(max_tokens=500), "messages"),
        (CHAT, question(max_completion_tokens=2**31 - 1), "messages"),
        (COMPLETIONS, {"prompt": [5] * 512}, "prompt"),
        (COMPLETIONS, {"prompt": ["short", "word " * 600]}, "prompt"),
    ],
)
def test_the_context(port, path, body, param):
    message = check_error(ask(port, "POST", path, body), 400, "context_length_exceeded", param)
    assert "This model's maximum context length is 512 tokens" in message
    assert ask(port, "POST", COMPLETIONS, {"prompt": [5] * 511}).status == 200


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large(port, declared):
    body = json.dumps(question("x" * 200_000)).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    chunks = body if declared else iter([body[:50_000], body[50_000:]])
    connection.request("POST", CHAT, chunks, encode_chunked=not declared)
    response = connection.getresponse()
    error = json.loads(response.read())["error"]
    assert (response.status, error["code"]) == (413, "body_too_large")
    assert "more than 100000 bytes" in error["message"]


def test_a_connection_is_kept(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    sockets = set()
    for body in (question(), b"{", question(stream=True), question()):
        connection.request("POST", CHAT, body if isinstance(body, bytes) else json.dumps(body))
        assert connection.getresponse().read()
        sockets.add(connection.sock)
    assert len(sockets) == 1 and None not in sockets


def test_the_form_of_a_stream(port):
    response = ask(port, "POST", CHAT, question(stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = response.body.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(json.loads(event.removeprefix("data: "))["object"] == "chat.completion.chunk" for event in events)


def test_the_api_key():
    with served(ScriptedEngine("fine"), Settings(api_key="s3cret")) as port:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "s3cret"},
            {"Authorization": "Bearer"},
        ):
            response = ask(port, "POST", CHAT, question(), headers)
            message = check_error(response, 401, "invalid_api_key")
            assert "s3cret" not in message and response.headers["www-authenticate"] == "Bearer"
        check_error(ask(port, "GET", "/v1/models"), 401, "invalid_api_key")
        assert ask(port, "POST", CHAT, question(), {"Authorization": "Bearer s3cret"}).status == 200
        assert ask(port, "GET", "/health").status == 200


def test_cross_origin_requests_only_where_allowed(port):
    origin = {"Origin": "http://page.example"}
    assert "access-control-allow-origin" not in ask(port, "POST", CHAT, question(), origin).headers
    settings = Settings(api_key="k", cors_origins=("http://page.example",))
    with served(ScriptedEngine("fine"), settings) as open_port:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        preflight = ask(open_port, "OPTIONS", CHAT, headers={**origin, **asked})
        assert preflight.status == 200
        assert preflight.headers["access-control-allow-origin"] == "http://page.example"
        response = ask(open_port, "POST", CHAT, question(), {**origin, "Authorization": "Bearer k"})
        assert response.headers["access-control-allow-origin"] == "http://page.example"
        elsewhere = ask(open_port, "GET", "/health", headers={"Origin": "http://other.example"})
        assert "access-control-allow-origin" not in elsewhere.headers


class FullEngine(ScriptedEngine):
    """Takes two sequences."""

    def submit(self, prompt, options, on_piece):
        if self.n_running == 2:
            raise QueueFullError("full")
        return super().submit(prompt, options, on_piece)


def test_a_full_queue():
    engine = FullEngine("x" * 3000, pause=0.02)
    with served(engine) as port:
        response = ask(port, "POST", CHAT, question(n=3))
        message = check_error(response, 429, "queue_full")
        assert "try again later" in message and response.headers["retry-after"] == "1"
        wait_for(lambda: engine.n_running == 0)  # the two that were taken are not left running


def test_the_engines_queue_is_the_limit():
    with tiny_engine(max_batch=1, max_queue=1) as engine, served(engine) as port:
        statuses = []
        body = question(max_tokens=200, ignore_eos=True)
        threads = [
            threading.Thread(target=lambda: statuses.append(ask(port, "POST", CHAT, body).status)) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200, 429}


@pytest.mark.parametrize("stream", [False, True])
def test_out_of_time(stream):
    engine = ScriptedEngine("x" * 3000, pause=0.02)
    with served(engine, Settings(timeout=0.5)) as port:
        response = ask(port, "POST", CHAT, question(stream=stream))
        if stream:
            assert response.status == 200
            *_, last, rest = response.body.decode().split("\n\n")
            error = json.loads(last.removeprefix("data: "))["error"]
            assert (error["code"], rest) == ("timeout", "")
        else:
            assert "longer than the server's limit of 0.5 seconds" in check_error(response, 504, "timeout")
        wait_for(lambda: engine.n_running == 0)
        assert 'status="504"} 1.0' in ask(port, "GET", "/metrics").body.decode()


def test_a_body_that_never_comes_is_not_waited_for():
    request = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{{"
    with (
        served(ScriptedEngine("fine"), Settings(timeout=0.5)) as port,
        socket.create_connection(("127.0.0.1", port), timeout=30) as slow,
    ):
        slow.sendall(request.encode())
        assert slow.recv(100).startswith(b"HTTP/1.1 504")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves(stream):
    engine = ScriptedEngine("x" * 30_000, pause=0.02)
    with served(engine) as port:
        body = json.dumps(question(stream=stream)).encode()
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_for(lambda: engine.n_running == 1)
            time.sleep(0.1)
        wait_for(lambda: engine.n_running == 0, seconds=10)
        wait_for(lambda: 'status="499"} 1.0' in ask(port, "GET", "/metrics").body.decode())


class BrokenEngine(ScriptedEngine):
    def _write(self, request, on_piece):
        on_piece(Piece("some"))
        on_piece(Piece("", (), "error", error="XlaRuntimeError: secret internals"))


def test_an_engine_that_fails():
    with served(BrokenEngine("")) as port:
        message = check_error(ask(port, "POST", CHAT, question()), 500, "engine_error")
        assert "secret" not in message
        events = ask(port, "POST", CHAT, question(stream=True)).body.decode()
        assert '"code":"engine_error"' in events and "[DONE]" not in events and "secret" not in events


def test_a_closed_engine():
    engine = tiny_engine()
    engine.close()
    with served(engine) as port:
        check_error(ask(port, "POST", CHAT, question()), 503, "shutting_down")
