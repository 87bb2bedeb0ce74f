"""The same files through lm-eval, with its own task definitions, on the exported model: the same log-likelihoods."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmark_files import (
    arc_records,
    hellaswag_records,
    lines,
    openbookqa_records,
    piqa_records,
    siqa_records,
    write_ceval,
    write_cmmlu,
)
from evaluation_helpers import random_model

from convert.to_hf import export
from minimind_jax.config import ModelConfig
from minimind_jax.evaluation.benchmarks.prompts import encode
from minimind_jax.evaluation.likelihood import score_choices
from minimind_jax.evaluation.task import TaskOptions
from minimind_jax.evaluation.tasks import open_task

pytestmark = pytest.mark.slow

# max_seq_len: some of the prompts with examples are longer.
CONFIG = ModelConfig(
    vocab_size=6400, dim=64, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=128, max_seq_len=192, qk_norm=True
)
MODEL = random_model(CONFIG, scale=1.5)

# Ours -> lm-eval's own definition.
UPSTREAM = {
    "ceval": "ceval/ceval-valid_{}.yaml",
    "cmmlu": "cmmlu/cmmlu_{}.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "piqa": "piqa/piqa.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "siqa": "siqa/siqa.yaml",
}
SUBJECTS = {"ceval": ("law", "physician"), "cmmlu": ("agronomy", "arts")}
PLAIN = """\
task: choices
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ALL = ["ceval", "cmmlu", "arc_easy", "hellaswag", "piqa", "openbookqa", "siqa", "choices"]
RUNS = [
    {"tasks": ALL, "dtype": "float64", "shots": 0, "chat": False},
    {"tasks": ["ceval", "arc_challenge", "hellaswag"], "dtype": "float32", "shots": 0, "chat": False},
    {"tasks": ["ceval", "cmmlu", "arc_easy", "piqa"], "dtype": "float64", "shots": 3, "chat": False},
    {"tasks": ["ceval", "arc_easy", "siqa"], "dtype": "float64", "shots": 2, "chat": True},
]
TOLERANCE = {"float64": 1e-6, "float32": 1e-4}


def names(task: str) -> list[str]:
    """lm-eval's tasks."""
    return [f"{task}_{subject}" for subject in SUBJECTS.get(task, ())] or [task]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Ours -> its file; ARC has a training file beside, PIQA has none."""
    root = tmp_path_factory.mktemp("benchmarks")
    sums = [{"question": f"{i} 加一？", "choices": [str(i), str(i + 1), "没有"], "answer": i % 3} for i in range(8)]
    strings = [record | {"label": str(record["label"])} for record in hellaswag_records(12)]  # a column of one type
    lines(root / "arc" / "train.jsonl", arc_records(10, seed=7))
    arc = lines(root / "arc" / "test.jsonl", arc_records(16))
    return {
        "ceval": write_ceval(root / "ceval", dict.fromkeys(SUBJECTS["ceval"], 6), explanation=False),
        "cmmlu": write_cmmlu(root / "cmmlu", dict.fromkeys(SUBJECTS["cmmlu"], 6)),
        "arc_easy": arc,
        "arc_challenge": arc,
        "hellaswag": lines(root / "hellaswag.jsonl", strings),
        "piqa": lines(root / "piqa.jsonl", piqa_records(12)),
        "openbookqa": lines(root / "openbookqa.jsonl", openbookqa_records(8)),
        "siqa": lines(root / "siqa.jsonl", siqa_records(8)),
        "choices": lines(root / "choices.jsonl", sums),
    }


@pytest.fixture(scope="module")
def theirs(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    found = importlib.util.find_spec("lm_eval")
    if found is None:
        pytest.skip("needs lm-eval: pip install -r requirements-test.txt")
    if int(importlib.metadata.version("transformers").split(".")[0]) < 5:
        pytest.skip("needs transformers 5: of older ones lm-eval's add_bos_token does not put bos in front")
    upstream, root = Path(found.submodule_search_locations[0]) / "tasks", tmp_path_factory.mktemp("lm_eval")
    (root / "tasks").mkdir()
    for task, path in files.items():
        for name in names(task):
            definition = PLAIN if task == "choices" else _definition(task, name, path, upstream)
            data = {"test": str(path)} if task == "choices" else _data(task, name, path)
            kind = "csv" if task in SUBJECTS else "json"
            source = f"dataset_path: {kind}\ndataset_name: null\ndataset_kwargs: {json.dumps({'data_files': data})}\n"
            (root / "tasks" / f"{name}.yaml").write_text(definition + source)
    export(MODEL, root / "model")
    runs = [run | {"tasks": [name for task in run["tasks"] for name in names(task)]} for run in RUNS]
    arguments = root / "arguments.json"
    arguments.write_text(json.dumps({"model": str(root / "model"), "include": str(root / "tasks"), "runs": runs}))
    environment = os.environ | {"HF_HOME": str(root / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    driver = [sys.executable, str(Path(__file__).with_name("lm_eval_driver.py")), arguments, root / "out.json"]
    done = subprocess.run(driver, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((root / "out.json").read_text())


def _definition(task: str, name: str, path: Path, upstream: Path) -> str:
    file = upstream / UPSTREAM[task].format(name.removeprefix(f"{task}_"))
    if task in SUBJECTS:
        return f"include: {file}\ntask: {name}\n"
    # Without a fewshot_split lm-eval would let a question be an example of itself.
    has_training = (path.parent / "train.jsonl").is_file()
    examples = "training_split: train" if has_training else "training_split: null\nfewshot_split: test"
    return f"include: {file}\ntask: {name}\n{examples}\nvalidation_split: null\ntest_split: test\n"


def _data(task: str, name: str, path: Path) -> dict[str, str]:
    subject = name.removeprefix(f"{task}_")
    if task == "ceval":
        return {split: str(path / split / f"{subject}_{split}.csv") for split in ("val", "dev")}
    if task == "cmmlu":
        return {split: str(path / split / f"{subject}.csv") for split in ("test", "dev")}
    train = path.parent / "train.jsonl"
    return {"test": str(path)} | ({"train": str(train)} if train.is_file() else {})


@pytest.mark.parametrize(("number", "task"), [(i, task) for i, run in enumerate(RUNS) for task in run["tasks"]])
def test_every_log_likelihood_is_lm_evals(files: dict[str, Path], theirs: list[dict], number: int, task: str):
    run = RUNS[number]
    ours = open_task(f"{task}:{files[task]}", TaskOptions(shots=run["shots"], chat=run["chat"]))
    with jax.enable_x64(run["dtype"] == "float64"):
        tokens = encode(MODEL.tokenizer, ours.questions, run["chat"])
        scored = score_choices(CONFIG, MODEL.params, tokens, dtype=jnp.dtype(run["dtype"]))
    expected = [document for name in names(task) for document in theirs[number][name]]
    assert len(scored) == len(expected)
    differences = [np.abs(one.logprobs - other["logprobs"]).max() for one, other in zip(scored, expected, strict=True)]
    print(f"{task}, {run['dtype']}, {run['shots']} shots: differs by {max(differences):.1e} nats at most")
    assert any(one.truncated for one in scored) == (run["chat"] and task == "ceval")
    assert max(differences) < TOLERANCE[run["dtype"]]
    assert [one.is_greedy.tolist() for one in scored] == [other["greedy"] for other in expected]
    result = ours.judge(scored)
    for metric in ("acc", "acc_norm"):
        if metric in expected[0]:
            assert result.scores[metric].tolist() == [document[metric] for document in expected]
