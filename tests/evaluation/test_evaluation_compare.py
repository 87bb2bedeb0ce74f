"""Models side by side: table, JSON, answers on disk, picture, checkpoints by name; options that do not go together."""

from __future__ import annotations

import dataclasses
import json
import re
import sys

import numpy as np
import pytest
from evaluation_helpers import random_model

import evaluate
from convert.to_hf import export
from minimind_jax.config import ModelConfig
from minimind_jax.evaluation import Comparison, ModelInfo, TaskResult, evaluate_file
from minimind_jax.evaluation.comparison import task_labels
from minimind_jax.evaluation.comparison_plot import plot_comparison
from minimind_jax.evaluation.comparison_table import comparison_table, examples, groups_table
from minimind_jax.evaluation.task import spread
from minimind_jax.workdir import Workdir, save_imported, short_names, split_step

CONFIG = ModelConfig(dim=32, n_layers=1, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=6400, max_seq_len=256)
TEXTS = ["The crows came back every morning.", "柠檬一般是黄色的。", "one two three four", "the sea was calm " * 20]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Two models, a workdir and a Hugging Face directory, and files for two tasks."""
    root = tmp_path_factory.mktemp("compare")
    for name, seed in (("first", 0), ("second", 1)):
        model = random_model(CONFIG, seed=seed, scale=3)
        (root / name).mkdir()
        save_imported(Workdir(root / name / "run"), model.config, model.params, model.tokenizer, "test")
        export(model, root / name / "hf")
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (root / "ask.jsonl").write_text(
        "".join(json.dumps({"question": f"{i}?", "answer": str(i)}) + "\n" for i in range(9))
    )
    return root


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command: what it printed, or the error that it ended with."""

    def run(*argv: object) -> str:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, argv)])
        try:
            evaluate.main()
        except SystemExit as e:
            capsys.readouterr()
            return str(e.code)
        return capsys.readouterr().out

    return run


def test_two_models_on_two_tasks(run, places, tmp_path):
    first, second = places / "first" / "run", places / "second" / "hf"
    ask, texts = f"exact:{places / 'ask.jsonl'}", f"loss:{places / 'texts.jsonl'}"
    out, answers, png = tmp_path / "out.json", tmp_path / "answers", tmp_path / "plot.png"
    said = run(
        "--model", f"{first}@0", "--model", second, "--task", ask, "--task", texts, "--limit", 4, "--max-new-tokens", 3,
        "--json", out, "--answers", answers, "--plot", png,
    )  # fmt: skip
    written = json.loads(out.read_text())
    assert [m["name"] for m in written["models"]] == ["run@0", "hf"]
    assert [m["path"] for m in written["models"]] == [f"{first}@0", str(second)]
    assert [t["task"] for t in written["tasks"]] == ["exact", "loss"]
    exact, loss = written["tasks"]
    assert [r["items"] for r in exact["results"]] == [4, 4] and exact["results"][0]["details"]["of"] == 9
    assert "exact: 4 of 9 items, always the same ones" in said

    by_model = [evaluate_file(random_model(CONFIG, seed=seed, scale=3), places / "texts.jsonl") for seed in (0, 1)]
    for score, result in zip(by_model, loss["results"], strict=True):
        assert result["metrics"]["bits_per_byte"]["value"] == pytest.approx(score.bits_per_byte, rel=1e-6)
        assert result["metrics"]["loss"]["value"] == pytest.approx(score.loss, rel=1e-6)
    difference = loss["differences"][0]
    assert difference == {"model": "hf", "to": "run@0", "metric": "bits_per_byte"} | difference
    assert difference["value"] == pytest.approx(by_model[1].bits_per_byte - by_model[0].bits_per_byte, rel=1e-5)
    sizes = by_model[0].by_document.bytes
    each = (by_model[1].by_document.nats - by_model[0].by_document.nats) / np.log(2) / sizes
    residuals = sizes / sizes.sum() * (each - difference["value"])
    assert difference["stderr"] == pytest.approx(np.sqrt(4 / 3 * np.sum(residuals**2)), rel=1e-4)

    names = ["exact.hf.jsonl", "exact.run@0.jsonl", "loss.hf.jsonl", "loss.run@0.jsonl"]
    assert sorted(path.name for path in answers.iterdir()) == names
    records = [json.loads(line) for line in (answers / "exact.hf.jsonl").read_text().splitlines()]
    assert [r["id"] for r in records] == ["2", "4", "6", "8"] and all(
        {"reply", "gold", "scores"} <= r.keys() for r in records
    )
    assert png.read_bytes().startswith(b"\x89PNG")
    assert re.search(r"^exact +exact +- +4 .* %", said, re.M) and "hf - run@0" in said
    assert re.search(r"^exact 2: 1\? +\[right: 1\]\n +run@0 +wrong ", said, re.M)


def test_documents_are_scored_one_by_one(places):
    model = random_model(CONFIG, scale=3)
    whole = evaluate_file(model, places / "texts.jsonl").by_document
    for i, text in enumerate(TEXTS):
        file = places / "one.jsonl"
        file.write_text(json.dumps({"text": text}))
        alone = evaluate_file(model, file)
        assert (whole.targets[i], whole.bytes[i]) == (alone.target_tokens, alone.bytes)
        assert whole.nats[i] == pytest.approx(alone.loss * alone.target_tokens, rel=1e-6)
    assert whole.number.tolist() == [0, 1, 2, 3]


def test_a_limit_of_texts_is_spread_over_the_file(places):
    model = random_model(CONFIG, scale=3)
    two = evaluate_file(model, places / "texts.jsonl", limit=2)
    each = evaluate_file(model, places / "texts.jsonl").by_document.nats
    assert two.by_document.nats == pytest.approx([each[1], each[3]], rel=1e-6)


def test_spread():
    assert spread("abcdefgh", 2) == ["c", "g"] and spread("abc", 3) == spread("abc", None) == "abc"
    assert all(len(set(spread(range(n), k))) == k for n in range(1, 30) for k in range(1, n))


def results(scores, groups=("zh", "en", "zh", "en")):
    records = [{"id": str(i), "prompt": f"q{i}", "reply": f"r{i}", "gold": [f"g{i}"]} for i in range(4)]
    return TaskResult("t", {"acc": np.array(scores, float)}, {"acc": 0.25}, "acc", groups, records, {"notes": ["same"]})


MODELS = [ModelInfo(name, f"out/{name}", 5, 10) for name in ("a", "b")]


def test_table_groups_and_examples():
    comparison = Comparison(MODELS, ["t"], [[results([0, 0, 0, 0]), results([1, 1, 1, 0])]])
    header, row, star, *notes = comparison_table(comparison).splitlines()
    assert re.split(r"\s{2,}", header) == ["task", "metric", "chance", "items", "a", "b", "b - a"]
    assert re.split(r"\s{2,}", row) == ["t", "acc", "25.0 %", "4", "0.0 ± 0.0 %", "75.0 ± 21.7 %", "+75.0 ± 25.0 % *"]
    assert star.startswith("* differs") and notes == ["t: same"]
    lines = groups_table(comparison).splitlines()
    assert [re.split(r"\s{2,}", line) for line in lines[1:]] == [
        ["t", "zh", "2", "0.0 ± 0.0 %", "100.0 ± 0.0 %"],
        ["t", "en", "2", "0.0 ± 0.0 %", "50.0 ± 35.4 %"],
    ]
    shown = examples(comparison)
    assert shown.count("right:") == 4 and shown.count(" right  'r") == 3 and shown.count(" wrong  'r") == 5


def test_what_is_not_of_the_same_items_has_no_difference():
    other = dataclasses.replace(results([1, 1, 1, 0]), groups=["zh"] * 4)
    comparison = Comparison(MODELS, ["t"], [[results([0, 0, 0, 0]), other]])
    assert "other items" in comparison_table(comparison)
    (task,) = comparison.to_dict()["tasks"]
    assert task["differences"][0]["value"] is None


def test_a_picture_of_many_bars(tmp_path):
    one = TaskResult("loss", {"loss": np.array([2.0, 3.0])}, {}, "loss", ["", ""], [{}, {}])
    plot_comparison(Comparison(MODELS[:1], ["t", "loss"], [[results([0, 1, 1, 1])], [one]]), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000


def test_names():
    assert short_names(["out/a/sft", "out/b/sft", "x/dpo/"]) == ["a/sft", "b/sft", "dpo"]
    assert short_names(["run@5", "run@10", "."]) == ["run@5", "run@10", "."]
    assert task_labels(["loss:a/x.jsonl", "loss:b/x.jsonl", "mini"]) == ["loss:a/x.jsonl", "loss:b/x.jsonl", "mini"]


def test_a_step_is_part_of_a_models_name(tmp_path):
    assert split_step("out/run@250") == ("out/run", 250)
    assert split_step("out/run") == ("out/run", None) and split_step("@5") == ("@5", None)
    (tmp_path / "run@7").mkdir()
    assert split_step(str(tmp_path / "run@7")) == (str(tmp_path / "run@7"), None)


def test_options_that_do_not_go_together(run, places, tmp_path):
    one, two = places / "first" / "run", places / "second" / "run"
    ask, texts = f"exact:{places / 'ask.jsonl'}", f"loss:{places / 'texts.jsonl'}"
    for argv, message in (
        (["--model", one, "--model", one, "--task", ask], "run is given twice"),
        (["--model", one, "--model", two, "--task", ask, "--step", 0], "write --model DIR@STEP for each"),
        (["--model", f"{one}@7", "--task", ask], "has no checkpoint of step 7"),
        (["--model", one, "--task", ask, "--task", texts, "--data", "x"], "--data is for a single task"),
        (["--model", one, "--task", ask, "--data", "x"], "--data is for a single task"),
        (["--model", one], "write --task loss:PATH, or add --data PATH"),
        (["--model", one, "--task", ask, "--k", "a"], "--k a is not a list of whole numbers"),
        (["--model", one, "--task", ask, "--answers", tmp_path / "no" / "x"], "--answers"),
        (["--model", one, "--task", ask, "--plot", tmp_path], "--plot"),
        (["--model", one, "--task", ask, "--by-length"], "belongs to --task loss"),
        (["--model", one, "--task", ask, "--chat", "--plain"], "2"),  # argparse's
    ):
        assert message in run(*argv), argv
