"""`serve.py` and `chat.py` as commands: what they print, their exit codes, signals, a real terminal."""

import argparse
import contextlib
import dataclasses
import json
import os
import pty
import runpy
import select
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from serving_helpers import CONFIG, TOKENIZER, ask, question, tiny_params

from convert.to_hf import export
from minimind_jax import long_context
from minimind_jax.serving import add_model_arguments, bind, open_engine
from minimind_jax.workdir import LoadedModel

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny-hf"
    export(LoadedModel(CONFIG, tiny_params(), TOKENIZER, 0, Path("model")), path)
    return path


def exit_message(monkeypatch, command, *argv):
    """How a command ends in this process, which is quicker than a new one."""
    monkeypatch.setattr(sys, "argv", [command, *map(str, argv)])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(REPOSITORY / command), run_name="__main__")
    finally:
        signal.signal(signal.SIGTERM, handler)
    return end.value.code


def run(command, *argv, stdin="", **environment):
    line = [sys.executable, command, *map(str, argv)]
    environment = {**ENVIRONMENT, **environment}
    return subprocess.run(
        line, cwd=REPOSITORY, env=environment, input=stdin, capture_output=True, text=True, timeout=120
    )


@contextlib.contextmanager
def server(model, *argv, **environment):
    """A running `serve.py`, its port, and the lines it printed before it listened."""
    line = [sys.executable, "serve.py", "--model", model, "--port", "0", *argv]
    process = subprocess.Popen(
        line,
        cwd=REPOSITORY,
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    printed = []
    try:
        for text in process.stdout:
            printed.append(text)
            if " listens on http://" in text:
                yield process, int(text.split(":")[2].split("/")[0]), printed
                break
        else:
            pytest.fail("".join(printed))
    finally:
        process.kill()
        process.communicate()


def test_a_server_from_start_to_sigterm(model):
    names = ("--name", "mine", "gpt-4o", "--served-model-name", "other", "--name", "last")
    with server(model, *names, "--max-context", "300", MINIMIND_API_KEY="k") as (process, port, printed):
        assert f"{model}: 0.2M parameters in float32 on cpu (cpu), context 300 tokens\n" in printed
        assert any(line.startswith("compiling decode for 1 x 128") for line in printed)
        url = f"http://127.0.0.1:{port}/"
        assert printed[-1] == f"mine listens on {url}: a page to chat; {url}v1 is the API (Ctrl-C ends)\n"
        assert ask(port, "GET", "/v1/models").status == 401
        key = {"Authorization": "Bearer k"}
        cards = ask(port, "GET", "/v1/models", headers=key).body["data"]
        assert [card["id"] for card in cards] == ["mine", "gpt-4o", "other", "last"]
        answer = ask(port, "POST", "/v1/chat/completions", question(model="last", max_tokens=4), key)
        assert answer.body["model"] == "last"
        answer = ask(port, "POST", "/v1/chat/completions", question(model="mine", max_tokens=4), key)
        assert answer.body["usage"]["completion_tokens"] == 4
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=30)
        assert (process.returncode, rest.splitlines()[-1]) == (0, "stopped")
        assert "Traceback" not in rest


@pytest.mark.slow
def test_two_models_and_their_page(model, tmp_path):
    other = tmp_path / "tiny-hf"
    export(LoadedModel(CONFIG, tiny_params(1), TOKENIZER, 0, Path("model")), other)
    with server(model, "--model", other) as (_, port, printed):
        first, second = f"{model.parent.name}/tiny-hf", f"{tmp_path.name}/tiny-hf"
        assert printed[-1].startswith(f"{first}, {second} listens on http://127.0.0.1:{port}/: a page to chat")
        compiled = [line for line in printed if "compiling decode for 1 x 128" in line]
        assert [line.split(": ")[0] for line in compiled] == [first, second]
        told = ask(port, "GET", "/api/page").body
        parameters = sum(p.size for p in jax.tree.leaves(tiny_params()))
        assert [(m["name"], m["parameters"], m["step"]) for m in told["models"]] == [
            (first, parameters, 0),
            (second, parameters, 0),
        ]
        texts = {
            ask(port, "POST", "/v1/completions", {"prompt": "x", "model": name, "temperature": 0}).body["choices"][0][
                "text"
            ]
            for name in (first, second)
        }
        assert len(texts) == 2
        assert b"<!doctype html>" in ask(port, "GET", "/").body
        assert ask(port, "GET", "/", headers={"Host": f"localhost:{port}"}).status == 200
        assert ask(port, "GET", "/v1/models", headers={"Host": "evil.example"}).status == 421


def test_yarn_stretches_the_context(model):
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    printed = []
    args = parser.parse_args(["--model", str(model), "--yarn-factor", "2", "--yarn-original", "512"])
    with open_engine(args, printed.append) as engine:
        assert (engine.max_context, engine.config.rope_scaling.factor) == (1024, 2.0)
    assert printed[0].endswith("context 1024 tokens") and len(printed) == 1


def test_a_context_that_was_never_trained_is_warned_of(model, monkeypatch):
    monkeypatch.setattr(long_context, "trained_length", lambda path: 128)
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    printed = []
    with open_engine(parser.parse_args(["--model", str(model)]), printed.append):
        assert "conversations of up to 512 tokens are longer than the 128" in printed[1]
    with open_engine(parser.parse_args(["--model", str(model), "--max-context", "128"]), printed.append):
        assert len(printed) == 3


@pytest.mark.slow
def test_sigterm_finishes_what_is_under_way(model):
    with server(model) as (process, port, _):
        body = json.dumps(question(stream=True, max_tokens=450, ignore_eos=True))
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        with subprocess.Popen(["curl", "-sN", url, "-d", body], stdout=subprocess.PIPE, text=True) as client:
            first = client.stdout.readline()
            process.send_signal(signal.SIGTERM)
            answer = first + client.stdout.read()
        assert answer.endswith("data: [DONE]\n\n")
        process.communicate(timeout=30)
        assert process.returncode == 0


@pytest.mark.slow
def test_sigterm_ends_what_takes_too_long(tmp_path):
    config = dataclasses.replace(CONFIG, max_seq_len=2**17)
    export(LoadedModel(config, tiny_params(), TOKENIZER, 0, Path("model")), tmp_path / "long")
    with server(tmp_path / "long") as (process, port, _):
        body = json.dumps(question(stream=True, max_tokens=2**16, ignore_eos=True))
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        with subprocess.Popen(["curl", "-sN", url, "-d", body], stdout=subprocess.PIPE, text=True) as client:
            client.stdout.readline()
            process.send_signal(signal.SIGTERM)
            *_, last, rest = client.stdout.read().split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down" and rest == ""
        process.communicate(timeout=30)
        assert process.returncode == 0


@pytest.mark.slow
def test_a_warning_where_others_can_reach_it(model):
    with server(model, "--host", "0.0.0.0") as (_, __, printed):
        assert any("other machines can reach this server, and it has no --api-key" in line for line in printed)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--port", "70000"], "--port=70000 must be from 0 to 65535"),
        (["--host", "no.such.host.invalid"], "--host=no.such.host.invalid is no address"),
        (["--timeout", "0"], "--timeout=0 must be a number of seconds above 0"),
        (["--max-tokens", "0"], "--max-tokens=0 must be at least 1"),
        (["--name", "", "--port", "0"], "--name is empty: give a name, or leave it away"),
        (["--temperature", "-1"], "temperature=-1.0 must be a number of at least 0"),
        (["--allow-host", "http://me.example"], "--allow-host=http://me.example is no host name: give it without"),
        (["--allow-host", "me.example:80"], "--allow-host=me.example:80 is no host name"),
        (["--suggestions", "nowhere.json"], "--suggestions nowhere.json cannot be read: No such file"),
        (["--api-key", ""], "--api-key is empty"),
        (["--api-key", "schlüssel"], "the API key must be ASCII"),
        (["--max-batch", "0", "--port", "0"], "--max-batch=0 must be at least 1"),
        (["--model", "nowhere", "--port", "0"], "nowhere is not a directory"),
        (["--runs", "nowhere", "--port", "0"], "--runs nowhere is not a directory"),
        ([], "nothing to serve: name a model by --model, or a directory of training runs by --runs"),
        (["--model", "MODEL", "--model", "MODEL", "--port", "0"], "--model MODEL is given twice"),
        (["--model", "MODEL", "--model", "b", "--name", "x", "--port", "0"], "--name gives 1 names to 2 models"),
        (["--model", "MODEL", "--model", "b", "--step", "2", "--port", "0"], "--step=2 is for one --model"),
        (["--model", "MODEL@7", "--step", "2", "--port", "0"], "--step=2 is for one --model"),
    ],
)
def test_servers_that_do_not_start(model, monkeypatch, capsys, argv, message):
    if "--model" not in argv and argv and argv[0] != "--runs":
        argv = ["--model", "MODEL", *argv]
    argv, message = [part.replace("MODEL", str(model)) for part in argv], message.replace("MODEL", str(model))
    assert exit_message(monkeypatch, "serve.py", *argv).startswith(f"error: {message}")
    assert capsys.readouterr().out == ""


def test_a_port_that_is_taken(model, monkeypatch):
    with contextlib.closing(bind("127.0.0.1", 0)) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        message = exit_message(monkeypatch, "serve.py", "--model", model, "--port", port)
        assert message.startswith(f"error: cannot listen on 127.0.0.1, port {port}: Address already in use")


def test_a_chat_in_a_pipe(model):
    greedy = ["--model", model, "--temperature", "0", "--max-tokens", "12"]
    piped = run("chat.py", *greedy, stdin="你好\n/reset\n你好\n")
    assert piped.returncode == 0, piped.stderr
    first, second = piped.stdout.splitlines()[:1], piped.stdout.splitlines()[1:]
    assert first == second and first
    assert "tokens/s" in piped.stderr and "compiling decode" in piped.stderr and "\x1b" not in piped.stdout


@pytest.mark.slow
def test_one_question(model):
    once = run("chat.py", "--model", model, "--max-tokens", "5", "--think", "--prompt", "你好")
    assert once.returncode == 0 and once.stdout.strip()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--top-p", "2"], "top_p=2.0 must be a number"),
        (["--frequency-penalty", "-3"], "frequency_penalty=-3.0 must be a number of at least -2"),
        (["--presence-penalty", "3"], "presence_penalty=3.0 must be a number of at least -2 and at most 2"),
        (["--max-context", "-1"], "--max-context=-1 must be at least 0"),
        (["--prompt", "word " * 600], "the prompt has"),
    ],
)
def test_chats_that_fail(model, monkeypatch, argv, message):
    assert exit_message(monkeypatch, "chat.py", "--model", model, *argv).startswith(f"error: {message}")


@pytest.mark.slow
def test_a_chat_in_a_terminal(model):
    """Ctrl-C stops the answer, not the program."""
    controller, terminal = pty.openpty()
    line = [sys.executable, "chat.py", "--model", model, "--max-tokens", "480", "--temperature", "1", "--seed", "1"]
    with subprocess.Popen(
        line,
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:
        os.close(terminal)
        read = ""

        def read_more():
            nonlocal read
            assert select.select([controller], [], [], 60)[0], f"nothing comes after {read!r}"
            read += os.read(controller, 4096).decode(errors="replace")

        def wait_for_text(text):
            nonlocal read
            while text not in read:
                read_more()
            read = read[read.index(text) + len(text) :]

        try:
            wait_for_text("/quit")
            wait_for_text("> ")
            os.write(controller, b"hello\n")
            wait_for_text("hello")
            wait_for_text("compiling decode for 1 x 128")
            wait_for_text("\n")
            while len(read) < 40:  # the answer is under way
                read_more()
            process.send_signal(signal.SIGINT)
            wait_for_text("stopped")
            wait_for_text("> ")
            os.write(controller, b"/quit\n")
            process.wait(timeout=30)
            assert process.returncode == 0
        finally:
            process.kill()  # else a failure would wait for it for ever
    os.close(controller)
