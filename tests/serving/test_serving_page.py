"""What the server gives browsers: the page's files, headers, what the page may ask, and who else may not."""

from __future__ import annotations

import http.client
import json
import re
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_helpers import N_PARAMS, SETTINGS, ScriptedEngine, application, ask, question, served
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.testclient import TestClient

import minimind_jax
from minimind_jax.errors import UserError
from minimind_jax.serving import Page, Settings
from minimind_jax.serving.demo_tools import TOOLS
from minimind_jax.serving.static import CONTENT_SECURITY_POLICY, WEB, StaticFiles

SAME = {"Sec-Fetch-Site": "same-origin"}


class FakeRuns:
    """One run, with a slash in its name."""

    def list(self):
        return [{"id": "a/sft", "step": 3}]

    def read(self, id, after):
        if id == "bad":
            raise UserError("config.json is no JSON")
        return {"metrics": [{"step": step} for step in (1, 2, 3) if step > after]} if id == "a/sft" else {}[id]


@pytest.fixture(scope="module")
def port():
    page = Page({"zh": ["你好？"]}, FakeRuns())
    with served({"small": ScriptedEngine("fine"), "large": ScriptedEngine("good")}, page=page) as port:
        yield port


def raw(port: int, target: str, method: str = "GET") -> bytes:
    """The whole response to a request whose target no client has tidied up."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode("latin-1"))
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/runs", 200),
        ("GET", "/web/style.css", 200),
        ("GET", "/web/none.js", 404),
        ("GET", "/nowhere", 404),
        ("DELETE", "/", 405),
        ("GET", "/v1/models", 200),
        ("POST", "/v1/chat/completions", 400),
        ("POST", "/api/tools/calculate", 403),
        ("GET", "/api/page", 200),
        ("GET", "/metrics", 200),
    ],
)
def test_headers_of_every_answer(port, method, path, status):
    response = ask(port, method, path)
    assert response.status == status
    assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


def test_headers_of_streams_and_of_a_failure_inside():
    class Broken(ScriptedEngine):
        @property
        def max_context(self):
            raise ZeroDivisionError

    with TestClient(application({"tiny": ScriptedEngine("fine")})) as client:
        assert (
            "default-src 'none'"
            in client.post("/v1/chat/completions", json=question(stream=True)).headers["content-security-policy"]
        )
    with TestClient(application({"tiny": Broken("fine")}), raise_server_exceptions=False) as client:
        failed = client.get("/api/page")
        assert (failed.status_code, failed.json()["error"]["code"]) == (500, "internal_error")
        assert failed.headers["content-security-policy"] == CONTENT_SECURITY_POLICY


def test_the_policy_allows_nothing_from_elsewhere_and_nothing_inline():
    assert "unsafe" not in CONTENT_SECURITY_POLICY and "http" not in CONTENT_SECURITY_POLICY
    assert "*" not in CONTENT_SECURITY_POLICY


def test_files_have_their_types_and_are_whole(port):
    types = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
    types[".css"] = "text/css; charset=utf-8"
    files = [path for path in WEB.rglob("*") if path.is_file()]
    for path in files:
        response = TestClient(application(ScriptedEngine(""))).get(f"/web/{path.relative_to(WEB).as_posix()}")
        assert response.content == path.read_bytes()
        expected = types.get(path.suffix)
        assert expected is None or response.headers["content-type"] == expected
    assert ask(port, "GET", "/").body == (WEB / "index.html").read_bytes()
    assert ask(port, "GET", "/runs").body == (WEB / "runs.html").read_bytes()


def test_html_has_nothing_inline_and_nothing_from_elsewhere():
    for path in WEB.glob("*.html"):
        text = path.read_text("utf-8")
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", text), path.name
        assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text), path.name


def test_a_file_is_asked_for_each_time_and_sent_once(port):
    first = ask(port, "GET", "/web/style.css")
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = ask(port, "GET", "/web/style.css", headers={"If-None-Match": known})
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
        assert again.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert ask(port, "GET", "/web/style.css", headers={"If-None-Match": '"other"'}).status == 200
    assert ask(port, "GET", "/").headers["etag"] != tag


def test_head_has_the_headers_alone(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for path in ("/", "/web/style.css", "/api/page", "/health"):
        whole = ask(port, "GET", path)
        connection.request("HEAD", path)
        head = connection.getresponse()
        assert (head.status, head.read()) == (200, b"")
        assert head.headers["content-length"] == whole.headers["content-length"]
    connection.close()


OUTSIDE = [
    "/web/../app.py",
    "/web/%2e%2e/app.py",
    "/web/..%2fapp.py",
    "/web/%2e%2e%2fapp.py",
    "/web/%252e%252e%252fapp.py",
    "/web/..\\app.py",
    "/web/..%5capp.py",
    "/web/css/../../app.py",
    "/web//etc/passwd",
    "/web/%2fetc%2fpasswd",
    "/web/index.html%00.css",
    "/web/%00",
    "/web/css",
    "/web/css/",
    "/web/",
    "/web/.",
    "/web/./index.html",
    "/web/C:%5cWindows%5cwin.ini",
    "/web/\xff",
    "/web/%ff%fe",
    "/web/" + "a/" * 4000,
    "/../app.py",
    "//web/index.html",
]


@pytest.mark.parametrize("target", OUTSIDE)
def test_no_path_leads_out_of_the_files(port, target):
    response = raw(port, target)
    assert response.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 400 ")), response[:100]
    assert b"import annotations" not in response and b"root:" not in response


FILES = StaticFiles()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(["..", "/", "\\", "\0", "a", "css", "style.css", "app.py", ":", "~", "."])).map("".join)
)
def test_a_name_is_that_of_a_file_or_none(name):
    request = Request({"type": "http", "headers": []})
    try:
        assert FILES.answer(request, name).body == (WEB / name).read_bytes()
        assert name == "style.css"
    except HTTPException as e:
        assert e.status_code == 404 and name != "style.css"


# --- What the page asks -------------------------------------------------------------------------


def test_what_the_page_is_told(port):
    told = ask(port, "GET", "/api/page").body
    model = {"max_context": 512, "thinking": "switch", "step": 10, "parameters": N_PARAMS}
    assert told == {
        "models": [{"name": "small", **model}, {"name": "large", **model}],
        "defaults": {"temperature": SETTINGS.temperature, "top_p": SETTINGS.top_p, "max_tokens": SETTINGS.max_tokens},
        "tools": TOOLS,
        "suggestions": {"zh": ["你好？"], "en": []},
        "runs": True,
        "version": minimind_jax.__version__,
    }


def call(port, name, arguments, headers=SAME):
    return ask(port, "POST", f"/api/tools/{name}", {"arguments": arguments}, headers)


def test_tools_run(port):
    response = call(port, "calculate", '{"expression": "6 * 7"}')
    assert (response.status, json.loads(response.body["result"])) == (200, {"result": "42"})
    wrong = call(port, "convert_unit", '{"value": 1, "from_unit": "里", "to_unit": "km"}')
    assert wrong.status == 200 and "unknown unit '里'" in json.loads(wrong.body["result"])["error"]


@pytest.mark.parametrize(
    "arguments",
    ["", "[]", "null", "3", "[" * 20_000, '{"expression": "' + "(" * 199 + '"}', '{"\\ud800": 1}', '{"x": NaN}', "\0"],
)
def test_arguments_of_any_kind_are_answered(port, arguments):
    response = call(port, "calculate", arguments)
    assert response.status == 200 and list(json.loads(response.body["result"])) == ["error"]


@pytest.mark.parametrize("name", ["eval", "call", "__class__", "calculate/x", "", "Calculate", "os.system"])
def test_no_other_function_can_be_called(port, name):
    assert call(port, name, "{}").status == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:PORT"}, 403),
        ({"Origin": "http://127.0.0.1:PORT"}, 200),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Origin": "http://127.0.0.1:PORT.evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({}, 403),
    ],
)
def test_tools_are_for_the_own_page_only(port, headers, status):
    headers = {name: value.replace("PORT", str(port)) for name, value in headers.items()}
    response = call(port, "current_time", "{}", headers)
    assert response.status == status
    if status == 403:
        assert "own page" in response.body["error"]["message"] and response.body["error"]["code"] == "cross_origin"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        ([], 400),
        ({"arguments": {}}, 400),
        ({"arguments": 3}, 400),
        ({}, 200),
        ({"arguments": "x" * 70_000}, 413),
    ],
)
def test_bodies_of_tool_calls(port, body, status):
    response = ask(port, "POST", "/api/tools/current_time", body, SAME)
    assert response.status == status
    assert status == 200 or response.body["error"]["message"]


# --- Runs ---------------------------------------------------------------------------------------


def test_runs(port):
    assert ask(port, "GET", "/api/runs").body == {"runs": [{"id": "a/sft", "step": 3}]}
    assert len(ask(port, "GET", "/api/runs/a/sft").body["metrics"]) == 3
    assert len(ask(port, "GET", "/api/runs/a%2Fsft?after=2").body["metrics"]) == 1
    assert ask(port, "GET", "/api/runs/none").status == 404
    damaged = ask(port, "GET", "/api/runs/bad")
    assert (damaged.status, damaged.body["error"]["message"]) == (404, "config.json is no JSON")
    for after in ("x", "1.5", "", "--1", "9" * 30, "%C2%B2", "%0A1"):
        assert ask(port, "GET", f"/api/runs/a/sft?after={after}").status == 400


def test_without_runs_there_is_no_page_of_them():
    with TestClient(application(ScriptedEngine(""))) as client:
        assert [client.get(path).status_code for path in ("/runs", "/api/runs", "/api/runs/x")] == [404] * 3
        assert client.get("/api/page").json()["runs"] is False


def test_without_a_model_there_are_runs_alone():
    with TestClient(application([], page=Page(runs=FakeRuns()))) as client:
        first = client.get("/", follow_redirects=False)
        assert (first.status_code, first.headers["location"]) == (307, "/runs")
        assert client.get("/api/page").json()["models"] == client.get("/v1/models").json()["data"] == []
        assert client.get("/health").json() == {"status": "ok", "model": None, "models": []}
        refused = client.post("/v1/chat/completions", json=question())
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
        assert "shows training runs only" in refused.json()["error"]["message"]


# --- Who may ask --------------------------------------------------------------------------------


def test_the_page_is_free_and_what_it_asks_needs_the_key():
    settings = Settings(api_key="k")
    with TestClient(application(ScriptedEngine(""), settings, Page(runs=FakeRuns()))) as client:
        for path in ("/", "/runs", "/web/style.css", "/health"):
            assert client.get(path).status_code == 200
        key = {"Authorization": "Bearer k"}
        for path in ("/api/page", "/api/runs", "/api/runs/a/sft", "/v1/models"):
            assert client.get(path).json()["error"]["code"] == "invalid_api_key"
            assert client.get(path, headers=key).status_code == 200
        tool = "/api/tools/current_time"
        assert client.post(tool, json={}, headers=SAME).status_code == 401
        assert client.post(tool, json={}, headers={**SAME, **key}).status_code == 200
        assert client.post(tool, json={}, headers=key).status_code == 403


@pytest.mark.parametrize("origins", [("*",), ("http://page.example",)])
def test_other_pages_that_may_use_the_api_get_nothing_of_the_page(origins):
    with TestClient(application(ScriptedEngine("hi"), Settings(cors_origins=origins))) as client:
        foreign = {"Origin": "http://page.example", "Sec-Fetch-Site": "cross-site"}
        answer = client.post("/v1/chat/completions", json=question(), headers=foreign)
        assert "access-control-allow-origin" in answer.headers
        asking = {**foreign, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        for method, path in (("POST", "/api/tools/current_time"), ("GET", "/api/page")):
            response = client.request(method, path, headers=foreign)
            preflight = client.options(path, headers=asking)
            assert not any(name.startswith("access-control") for name in (*response.headers, *preflight.headers))
            assert preflight.status_code == 405
        assert client.post("/api/tools/current_time", json={}, headers=foreign).status_code == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8998", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8998", 200),
        ("[::1]", 200),
        ("evil.example", 421),
        ("evil.example:8998", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:80", 421),
        ("[::2]", 421),
        ("", 421),
    ],
)
def test_names_that_are_not_the_servers(host, status):
    settings = Settings(allowed_hosts=("localhost", "127.0.0.1", "[::1]"))
    with TestClient(application(ScriptedEngine(""), settings)) as client:
        for path in ("/v1/models", "/", "/api/page"):
            response = client.get(path, headers={"Host": host})
            assert response.status_code == status
            if status == 421:
                assert response.json()["error"]["code"] == "unknown_host"
                assert "--allow-host" in response.json()["error"]["message"]
