"""Several models in one server: their names, which one answers, and what is counted of each."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving_helpers import ScriptedEngine, application, ask, question, served, tiny_engine, tiny_params
from starlette.testclient import TestClient

from minimind_jax.errors import UserError
from minimind_jax.serving import ServedModel, Settings
from minimind_jax.serving.models import ModelSpec, model_names

CHAT = "/v1/chat/completions"


def names(*models, given=()):
    return model_names([ModelSpec.parse(model) for model in models], given)


def test_one_model_has_the_directorys_name_or_any_number_of_others():
    assert names("out/quick/dpo/") == [("dpo",)]
    assert names("out/dpo", given=["a", "b", "a"]) == [("a", "b")]
    assert names("out/dpo@120") == [("dpo@120",)]
    assert names(".") == [(Path.cwd().name,)]


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (["out/dpo", "out/sft"], ["dpo", "sft"]),
        (["out/a/dpo", "out/b/dpo"], ["a/dpo", "b/dpo"]),
        (["out/a/x/dpo", "out/b/x/dpo", "out/sft"], ["a/x/dpo", "b/x/dpo", "sft"]),
        (["out/dpo@10", "out/dpo@20", "out/dpo"], ["dpo@10", "dpo@20", "dpo"]),
        (["/a/dpo@10", "/b/dpo@10"], ["a/dpo@10", "b/dpo@10"]),
        (["/dpo", "/x/dpo"], ["dpo", "x/dpo"]),
    ],
)
def test_directories_of_one_name_are_told_apart_by_their_paths(models, expected):
    assert names(*models) == [(name,) for name in expected]


def test_names_that_do_not_fit():
    assert names("a", "b", given=["x", "y"]) == [("x",), ("y",)]
    with pytest.raises(UserError, match="--name gives 3 names to 2 models: give one a model, in their order"):
        names("a", "b", given=["x", "y", "z"])
    with pytest.raises(UserError, match="--name x is given twice: models need names of their own"):
        names("a", "b", given=["x", "x"])
    with pytest.raises(UserError, match=r"--model \./out/dpo is given twice"):
        names("out/dpo", "./out/dpo")
    with pytest.raises(UserError, match="--name is empty"):
        names("a", "b", given=["x", ""])


def test_a_step_follows_an_at_unless_a_directory_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run@7").mkdir()
    assert ModelSpec.parse("run@7") == ModelSpec("run@7")
    assert ModelSpec.parse("run@8") == ModelSpec("run", 8)
    for text in ("run", "run@", "@8", "run@x", "run@-1", "run@²"):
        assert ModelSpec.parse(text) == ModelSpec(text)


@pytest.fixture(scope="module")
def client():
    models = [
        ServedModel(ScriptedEngine("one"), ("a/dpo", "first")),
        ServedModel(ScriptedEngine("two"), ("b/dpo",)),
    ]
    with TestClient(application(models)) as client:
        yield client


def answer(client, **fields):
    body = client.post(CHAT, json=question(**fields)).json()
    return body["model"], body["choices"][0]["message"]["content"]


def test_the_name_picks_the_model(client):
    assert answer(client) == ("a/dpo", "one")
    assert answer(client, model="first") == ("first", "one")
    assert answer(client, model="b/dpo") == ("b/dpo", "two")
    text = client.post("/v1/completions", json={"prompt": "x", "model": "b/dpo"}).json()
    assert (text["model"], text["choices"][0]["text"]) == ("b/dpo", "two")
    stream = client.post(CHAT, json=question(model="b/dpo", stream=True)).text
    assert stream.count('"model":"b/dpo"') == stream.count("data: {") and '"content":"two"' in stream
    refused = client.post(CHAT, json=question(model="c"))
    assert refused.status_code == 404
    assert refused.json()["error"]["message"] == (
        "there is no model 'c' here: this server has 'a/dpo' and 'first' and 'b/dpo'"
    )


def test_all_are_listed(client):
    assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["a/dpo", "first", "b/dpo"]
    assert client.get("/v1/models/b/dpo").json()["id"] == "b/dpo"
    assert [model["name"] for model in client.get("/api/page").json()["models"]] == ["a/dpo", "b/dpo"]


def test_with_any_model_unknown_names_mean_the_first():
    models = {"one": ScriptedEngine("one"), "two": ScriptedEngine("two")}
    with TestClient(application(models, Settings(any_name=True))) as client:
        assert answer(client, model="gpt-9") == ("gpt-9", "one")
        assert answer(client, model="two") == ("two", "two")


def test_health_names_the_model_that_has_ended():
    engines = {"one": ScriptedEngine("one"), "two": ScriptedEngine("two")}
    with TestClient(application(engines)) as client:
        assert client.get("/health").json() == {"status": "ok", "model": "one", "models": ["one", "two"]}
        engines["two"].is_alive = False
        failed = client.get("/health")
        assert (failed.status_code, failed.json()["error"]["code"]) == (503, "engine_error")
        assert "the engine of 'two' has ended" in failed.json()["error"]["message"]


def test_numbers_of_each_model():
    with TestClient(application({"one": ScriptedEngine("abc"), "two": ScriptedEngine("abcdef")})) as client:
        for model in ("one", "two", "two"):
            answer(client, model=model)
        lines = client.get("/metrics").text.splitlines()
    # One token to three characters.
    assert 'minimind_generated_tokens_total{model="one"} 1.0' in lines
    assert 'minimind_generated_tokens_total{model="two"} 4.0' in lines
    assert 'minimind_time_to_first_token_seconds_count{model="two"} 2.0' in lines
    assert 'minimind_sequences_running{model="one"} 0.0' in lines


@pytest.mark.slow
def test_engines_run_beside_each_other():
    """Two models of other weights, asked at once with one seed, answer as each does alone."""
    body = question(max_tokens=12, seed=1, temperature=1.0, ignore_eos=True)
    with tiny_engine() as first, tiny_engine(params=tiny_params(1)) as second:
        with served({"first": first, "second": second}) as port:
            together = _ask_at_once(port, body, ["first", "second"] * 2)
        alone = {}
        for name, engine in (("first", first), ("second", second)):
            with served({name: engine}) as port:
                alone[name] = _ask_at_once(port, body, [name])[0][1]
    assert alone["first"] != alone["second"]
    assert together == [(name, alone[name]) for name in ["first", "second"] * 2]


def _ask_at_once(port, body, names):
    def content(name):
        return name, ask(port, "POST", CHAT, {**body, "model": name}).body["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(len(names)) as pool:
        return list(pool.map(content, names))
