"""Training runs over HTTP: what is listed, what is read of a run at work, and that nothing else can be read."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from serving_helpers import SETTINGS, ScriptedEngine, ask, served

from minimind_jax.errors import UserError
from minimind_jax.serving import Page, RunsDirectory, Settings
from minimind_jax.serving import runs as runs_module

MODEL = dict(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=640, max_seq_len=64)


def write_run(path: Path, steps: range, total: int = 100, stage: str = "pretrain", **config) -> Path:
    path.mkdir(parents=True)
    config = {"format_version": 1, "stage": stage, "model": MODEL, "total_steps": total, **config}
    (path / "config.json").write_text(json.dumps(config))
    write_lines(path / "metrics.jsonl", [{"step": s, "loss": 5 / s, "val_loss": 6 / s} for s in steps], "w")
    return path


def write_lines(path: Path, lines: list[dict], mode: str = "a") -> None:
    with open(path, mode) as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def make_old(path: Path) -> None:
    for file in path.iterdir():
        os.utime(file, (1e9, 1e9))


def snapshot(path: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in [path, *path.rglob("*")]}


def test_what_is_found(tmp_path):
    write_run(tmp_path / "a" / "pretrain", range(1, 51))
    write_run(tmp_path / "b" / "c" / "sft", range(1, 101), stage="sft")
    write_run(tmp_path / "too" / "deep" / "for" / "it", range(1, 3))
    write_run(tmp_path / ".hidden", range(1, 3))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')
    (tmp_path / "link").symlink_to(tmp_path / "a")
    runs = {run["id"]: run for run in RunsDirectory(tmp_path).list()}
    assert runs.keys() == {"a/pretrain", "b/c/sft"}
    assert (runs["b/c/sft"]["stage"], runs["b/c/sft"]["step"], runs["b/c/sft"]["total_steps"]) == ("sft", 100, 100)
    attention, ffn = 32 * 32 * 2 + 32 * 16 * 2, 3 * 32 * 48
    assert runs["a/pretrain"]["parameters"] == 640 * 32 + 2 * (attention + ffn + 2 * 32) + 32
    assert RunsDirectory(tmp_path / "a" / "pretrain").list()[0]["id"] == "pretrain"


def test_a_directory_that_is_none(tmp_path):
    with pytest.raises(UserError, match=r"--runs .*nowhere is not a directory"):
        RunsDirectory(tmp_path / "nowhere")


def test_which_run_is_at_work(tmp_path):
    """Fresh lines, or the lock held by a process that has written none for long; never a run that has finished."""
    write_run(tmp_path / "fresh", range(1, 51))
    write_run(tmp_path / "finished", range(1, 101))
    for name in ("old", "locked"):
        make_old(write_run(tmp_path / name, range(1, 51)))
    lock = tmp_path / "locked" / ".lock"
    lock.write_text("1")
    code = f"import fcntl, time; f = open({str(lock)!r}, 'a+'); fcntl.flock(f, 2); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        live = {run["id"]: run["live"] for run in RunsDirectory(tmp_path).list()}
        assert live == {"fresh": True, "finished": False, "old": False, "locked": Path("/proc/locks").exists()}
        holder.kill()
    assert not next(run for run in RunsDirectory(tmp_path).list() if run["id"] == "locked")["live"]
    with open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody here keeps it


def test_it_only_reads(tmp_path):
    write_run(tmp_path / "a", range(1, 51))
    before = snapshot(tmp_path)
    runs = RunsDirectory(tmp_path)
    runs.list()
    runs.read("a", -1)
    assert snapshot(tmp_path) == before


def test_lines_come_as_they_are_written(tmp_path):
    path = write_run(tmp_path / "a", range(1, 11))
    runs = RunsDirectory(tmp_path)
    first = runs.read("a", -1)
    assert [line["step"] for line in first["metrics"]] == list(range(1, 11))
    assert runs.read("a", 10)["metrics"] == []
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "loss": 1.0}\n{"step": 12, "lo')
    second = runs.read("a", 10)
    assert (second["metrics"], second["problem"]) == ([{"step": 11, "loss": 1.0}], None)
    assert second["version"] == first["version"]
    os.replace(write_run(tmp_path / "new", range(1, 6)) / "metrics.jsonl", path / "metrics.jsonl")
    assert runs.read("a", 11)["version"] != first["version"]


@pytest.mark.parametrize("n", [3_000, 60_000])
def test_the_tail_of_a_long_file_is_what_the_whole_has(tmp_path, n):
    path = write_run(tmp_path / "a", range(1, 2))
    write_lines(path / "metrics.jsonl", [{"step": s, "loss": 1.0, "pad": "x" * 20} for s in range(2, n)])
    for after in (n - 2, n - 10, n // 2, 0):
        lines = RunsDirectory(tmp_path).read("a", after)["metrics"]
        assert (lines[0]["step"], lines[-1]["step"]) == (after + 1, n - 1)


def test_a_long_run_is_thinned_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(runs_module, "MAX_LINES", 100)
    path = write_run(tmp_path / "a", range(1, 2))
    lines = [{"step": s, "loss": 1.0, **({"val_loss": 1.0} if s % 100 == 7 else {})} for s in range(2, 1002)]
    write_lines(path / "metrics.jsonl", lines)
    answer = RunsDirectory(tmp_path).read("a", -1)
    steps = [line["step"] for line in answer["metrics"]]
    assert answer["thinned"] == {"of": 1001, "kept": len(steps)} and len(steps) <= 100
    assert {1, 7, 107, 907, 1001} <= set(steps) and steps == sorted(set(steps))
    assert max(b - a for a, b in itertools.pairwise(steps)) <= 13


@pytest.mark.parametrize(
    "damage", ["{", "nonsense", "[1]", '{"loss": 1}', '{"step": "5"}', '{"step": true}', "\xff", "[" * 100_000]
)
def test_a_damaged_line_is_named_and_the_rest_shown(tmp_path, damage):
    path = write_run(tmp_path / "a", range(1, 4))
    with open(path / "metrics.jsonl", "a", encoding="latin-1") as file:
        file.write(damage + "\n")
    write_lines(path / "metrics.jsonl", [{"step": 5, "loss": float("nan")}])
    answer = RunsDirectory(tmp_path).read("a", -1)
    assert answer["problem"] == "metrics.jsonl:4 is damaged and left out: delete this line, or mend it"
    assert [line["step"] for line in answer["metrics"]] == [1, 2, 3, 5]
    assert answer["metrics"][-1]["loss"] is None


def test_a_damaged_config_is_named(tmp_path):
    path = write_run(tmp_path / "a", range(1, 4))
    (path / "config.json").write_text("{")
    (run,) = RunsDirectory(tmp_path).list()
    assert (run["problem"], run["step"]) == ("config.json is damaged", 3)
    (path / "config.json").write_text('{"format_version": 1, "total_steps": "x", "model": 3}')
    assert RunsDirectory(tmp_path).read("a", -1)["about"]["parameters"] is None


def test_samples_and_report(tmp_path):
    path = write_run(tmp_path / "a", range(1, 4))
    samples = [{"step": s, "prompt": "p", "text": f"t{s}"} for s in (2, 3)]
    write_lines(path / "samples.jsonl", [*samples, {"step": 3, "prompt": 1}])
    (path / "report.json").write_text('{"before": {"val_loss": 9.0, "other": 1}}')
    answer = RunsDirectory(tmp_path).read("a", -1)
    assert answer["samples"] == samples
    assert answer["report"] == {"before": {"val_loss": 9.0, "other": 1}, "after": {"val_loss": 2.0}, "step": 3}
    assert RunsDirectory(tmp_path).read("a", 2)["samples"] == samples[1:]


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    write_run(root / "outside", range(1, 3))
    write_run(root / "out" / "x" / "中 文", range(1, 3))
    write_run(root / "out" / "links", range(1, 3))
    secret = root / "secret.json"
    secret.write_text('{"secret": 1, "step": 7, "format_version": 1}\n')
    for name in ("metrics.jsonl", "samples.jsonl", "report.json"):
        (root / "out" / "links" / name).unlink(missing_ok=True)
        (root / "out" / "links" / name).symlink_to(secret)
    (root / "out" / "way-out").symlink_to(root / "outside")
    (root / "out" / "pipe").mkdir()
    os.mkfifo(root / "out" / "pipe" / "config.json")
    with served(ScriptedEngine("x"), SETTINGS, page=Page(runs=RunsDirectory(root / "out"))) as port:
        yield port


@pytest.mark.parametrize(
    "id",
    ["../outside", "%2e%2e/outside", "x/../../outside", "..%2foutside", "way-out", "/etc", "%2fetc", "", ".", "x",
     "%00", "links/../../outside", "..%5coutside", "x/%E4%B8%AD%20%E6%96%87/", "%ff", "pipe", "x" * 3000],
)  # fmt: skip
def test_nothing_but_runs_is_read(port, id):
    answer = ask(port, "GET", f"/api/runs/{id}")
    assert answer.status in (404, 307)
    assert "secret" not in str(answer.body) and "metrics" not in str(answer.body)


def test_links_in_a_run_are_not_followed(port):
    answer = ask(port, "GET", "/api/runs/links")
    assert answer.status == 200
    body = answer.body
    assert (body["metrics"], body["samples"], body["report"]) == ([], [], None)
    assert "metrics.jsonl cannot be read" in body["problem"] and "secret" not in str(body)


def test_a_run_over_http(port):
    assert {run["id"] for run in ask(port, "GET", "/api/runs").body["runs"]} == {"x/中 文", "links"}
    answer = ask(port, "GET", "/api/runs/x/%E4%B8%AD%20%E6%96%87?after=1")
    assert (answer.status, [line["step"] for line in answer.body["metrics"]]) == (200, [2])
    answer = ask(port, "GET", "/api/runs/links?after=x")
    assert answer.status == 400 and "give a step" in answer.body["error"]["message"]


def test_without_runs_there_is_no_page():
    with served(ScriptedEngine("x")) as port:
        assert ask(port, "GET", "/runs").status == ask(port, "GET", "/api/runs").status == 404


def test_runs_need_the_key(tmp_path):
    with served(ScriptedEngine("x"), Settings(api_key="k"), page=Page(runs=RunsDirectory(tmp_path))) as port:
        assert ask(port, "GET", "/api/runs").status == ask(port, "GET", "/api/runs/a").status == 401
        assert ask(port, "GET", "/api/runs", headers={"Authorization": "Bearer k"}).status == 200
