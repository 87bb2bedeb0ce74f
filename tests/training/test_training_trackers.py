"""Trackers: imported only when named, one run for one workdir, and never the end of a training."""

from __future__ import annotations

import importlib.util
import json
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import training_helpers as th
from step_helpers import make_config

from minimind_jax.errors import UserError
from minimind_jax.training.metrics import MetricsLog
from minimind_jax.training.trackers import check_trackers, open_trackers
from minimind_jax.workdir import Workdir

ADAPTERS = "minimind_jax.training.trackers"


class FakeRun:
    """Keeps what a tracker's run is told."""

    def __init__(self, **options: Any):
        self.options, self.rows, self.axes, self.finished = options, [], [], False
        self.broken = False

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        if self.broken:
            raise ConnectionError("the network is gone\nand more lines")
        self.rows.append(values if step is None else {"step": step, **values})

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes.append((name, step_metric))

    def finish(self) -> None:
        self.finished = True


class Fake(ModuleType):
    """A tracking library: `runs` are those begun, `asked` says how often it looked for a login."""

    def __init__(self, name: str, mode: str, logged_in: bool):
        super().__init__(name)
        self.runs: list[FakeRun] = []
        self.asked = 0
        options = SimpleNamespace(name=None)
        settings = SimpleNamespace(
            mode=mode, api_key="key" if logged_in else None, project=options, experiment=options, given={}
        )

        def login(prompt: bool = True) -> bool:
            assert not prompt, "it may wait for an answer for ever"
            self.asked += 1
            return logged_in

        def init(**given: Any) -> FakeRun:
            if name == "swanlab":  # it takes the interrupt over
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            self.runs.append(FakeRun(**given))
            return self.runs[-1]

        self.setup = lambda: SimpleNamespace(settings=settings)
        self.Settings = lambda **given: SimpleNamespace(**vars(settings) | {"given": given})
        self.login, self.init = login, init
        self.Html = lambda text, inject: text
        self.Text = lambda text: text


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    def install(name: str, mode: str = "offline", logged_in: bool = False) -> Fake:
        fake = Fake(name, mode, logged_in)
        monkeypatch.setitem(sys.modules, name, fake)
        monkeypatch.delitem(sys.modules, f"{ADAPTERS}.{name}", raising=False)
        return fake

    yield install
    for name in ("wandb", "swanlab"):  # or a later test would find the fake in it
        sys.modules.pop(f"{ADAPTERS}.{name}", None)


def write(workdir: Workdir, steps: range, resumed_at: int, *names: str, warn: Any = pytest.fail) -> None:
    log = MetricsLog(workdir, resumed_at, open_trackers(names, workdir, resumed_at, {"model": {"dim": 8}}, warn))
    for step in steps:
        log.write({"step": step, "loss": 1 / step, "grad_norm": None})
    log.write_sample("中国", "<的首都>", steps[-1])
    log.close()


def steps(run: FakeRun) -> list[int]:
    return [row["step"] for row in run.rows if "loss" in row]


def test_the_list_of_trackers():
    assert make_config(log_to="").trackers == ()
    assert make_config(log_to="swanlab, tensorboard,swanlab").trackers == ("swanlab", "tensorboard")
    with pytest.raises(UserError, match="log_to='mlflow' is not one of tensorboard, wandb, swanlab"):
        make_config(log_to="wandb,mlflow")


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_a_package_is_imported_only_when_named(name: str, tmp_path: Path):
    """A package that fails at its import hurts those alone who name it."""
    (tmp_path / f"{name}.py").write_text("raise RuntimeError('imported\\ntwice')")
    code = f"""
from pathlib import Path
from minimind_jax.training.trackers import check_trackers, open_trackers
from minimind_jax.workdir import Workdir
check_trackers(("tensorboard",))
open_trackers(("tensorboard",), Workdir(Path({str(tmp_path)!r})), 0, {{}}, print).close()
try:
    check_trackers(("{name}",))
except Exception as e:
    print(type(e).__name__, e)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{tmp_path}:{th.REPOSITORY}", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == (
        f"UserError log_to names {name}, which cannot be imported (imported): pip install -U {name}, "
        "or leave it out of log_to\n"
    ), done.stderr


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_a_missing_package_stops_the_run_before_anything_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"{ADAPTERS}.{name}", raising=False)
    corpus = th.write_corpus(tmp_path / "corpus.jsonl", n_docs=10)
    with pytest.raises(UserError, match=f"log_to names {name}, which cannot be imported .*pip install -U {name}"):
        th.run_here(*th.overrides(tmp_path / "run", corpus, log_to=f"tensorboard,{name}"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_without_a_login_the_run_stops_instead_of_asking(name: str, install):
    install(name, "online", logged_in=False)
    with pytest.raises(UserError, match=f"{name}, which is not logged in: .*{name.upper()}_MODE=offline"):
        check_trackers((name,))
    install(name, "online", logged_in=True)
    check_trackers((name,))
    offline = install(name, "offline", logged_in=False)
    check_trackers((name,))
    assert offline.asked == 0


def test_swanlab_keeps_a_dashboard_here_only_with_its_package(install, monkeypatch: pytest.MonkeyPatch):
    install("swanlab", "local")
    monkeypatch.setitem(sys.modules, "swanboard", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"SWANLAB_MODE=local needs .*pip install 'swanlab\[dashboard\]'"):
        check_trackers(("swanlab",))


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_what_a_tracker_is_told(name: str, install, tmp_path: Path):
    fake, workdir = install(name), Workdir(tmp_path / "my-run")
    workdir.path.mkdir()
    write(workdir, range(1, 4), 0, name)
    (run,) = fake.runs
    text = "&lt;的首都&gt;" if name == "wandb" else "<的首都>"
    assert run.rows[:3] == [{"step": step, "loss": 1 / step} for step in range(1, 4)]  # no null: it is no number
    assert run.rows[3]["step"] == 3 and text in run.rows[3]["sample/中国"] and run.finished
    options = run.options
    assert options["config"] == {"model": {"dim": 8}} and options["resume"] == "allow"
    assert (options["project"], options["name"]) == ("minimind-jax", "my-run")
    if name == "wandb":
        # Rows need a step of their own, or wandb drops those that come late.
        assert options["dir"] == str(workdir.path) and run.axes == [("*", "step")]
    else:
        assert options["log_dir"] == str(workdir.path / "swanlab")
        assert options["settings"].given == {"interactive": False}


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_a_continued_run_is_the_same_and_is_not_told_twice(name: str, install, tmp_path: Path):
    fake, workdir = install(name), Workdir(tmp_path / "run")
    workdir.path.mkdir()
    write(workdir, range(1, 8), 0, name)  # killed at 7, its last checkpoint is 4
    said: list[str] = []
    write(workdir, range(5, 11), 4, name, warn=said.append)
    assert said == [f"warning: {name} knows this run up to step 7 and is told later steps only"]
    first, second = fake.runs
    assert first.options["id"] == second.options["id"] and len(first.options["id"]) == 16
    assert steps(first) + steps(second) == list(range(1, 11))
    other = Workdir(tmp_path / "other")
    other.path.mkdir()
    write(other, range(1, 3), 0, name)
    assert fake.runs[2].options["id"] != first.options["id"]


def test_a_tracker_that_joins_later_is_told_all_that_comes(install, tmp_path: Path):
    fake, workdir = install("wandb"), Workdir(tmp_path)
    write(workdir, range(1, 8), 0)
    write(workdir, range(5, 8), 4, "wandb")
    assert steps(fake.runs[0]) == [5, 6, 7]


def test_swanlab_leaves_the_interrupt_to_us(install, tmp_path: Path):
    install("swanlab")
    before = signal.getsignal(signal.SIGINT)
    try:
        write(Workdir(tmp_path), range(1, 3), 0, "swanlab")
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_tracker_that_fails_is_left_out(install, tmp_path: Path):
    wandb, swanlab, workdir, said = install("wandb"), install("swanlab"), Workdir(tmp_path), []
    log = MetricsLog(workdir, 0, open_trackers(("wandb", "swanlab"), workdir, 0, {}, said.append))
    for step in range(1, 6):
        wandb.runs[0].broken = step > 2
        log.write({"step": step, "loss": 1.0})
    log.close()
    assert len(said) == 1 and said[0].startswith("warning: wandb failed (the network is gone): ")
    assert "\n" not in said[0] and "metrics.jsonl goes on" in said[0]
    assert steps(wandb.runs[0]) == [1, 2] and not wandb.runs[0].finished
    assert steps(swanlab.runs[0]) == [1, 2, 3, 4, 5] and swanlab.runs[0].finished
    assert [json.loads(line)["step"] for line in workdir.metrics.read_text().splitlines()] == [1, 2, 3, 4, 5]


def test_a_tracker_that_cannot_start_is_one_sentence(install, tmp_path: Path):
    fake = install("wandb")

    def init(**_: Any) -> None:
        raise TimeoutError("90 seconds passed\nTraceback")

    fake.init = init
    with pytest.raises(UserError, match=r"wandb, which cannot start \(90 seconds passed\): .*WANDB_MODE=offline") as e:
        open_trackers(("wandb",), Workdir(tmp_path), 0, {}, pytest.fail)
    assert "\n" not in str(e.value)


# --- The real packages, offline --------------------------------------------------------------------


def records(file: Path) -> list[bytes]:
    """The records of a .wandb or .swanlab file: LevelDB's log format (blocks of 32 KiB) after 7 bytes of header."""
    data, out, part, at = file.read_bytes(), [], b"", 7
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, last
            out.append(part)
            part = b""
    return out


def read_wandb(file: Path) -> list[dict[str, Any]]:
    from wandb.proto.wandb_internal_pb2 import Record

    parsed = [Record.FromString(data) for data in records(file)]
    rows = []
    for record in parsed:
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    (run,) = (record.run for record in parsed if record.WhichOneof("record_type") == "run")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["batch_size"] == th.BATCH_SIZE and config["model"]["dim"] == 32
    return rows


def read_swanlab(file: Path) -> list[dict[str, Any]]:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

    rows: dict[int, dict[str, Any]] = {}
    for record in map(Record.FromString, records(file)):
        if record.WhichOneof("record_type") == "scalar":
            rows.setdefault(record.scalar.step, {"step": record.scalar.step})[record.scalar.key] = (
                record.scalar.value.number
            )
    assert "batch_size" in (file.parent / "files" / "config.yaml").read_text("utf-8")
    return list(rows.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_an_interrupted_run_offline_has_every_step_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed; it is optional (pip install {name})")
    monkeypatch.setenv(f"{name.upper()}_MODE", "offline")
    corpus = th.write_corpus(tmp_path / "corpus.jsonl")
    arguments = th.overrides(tmp_path / "run", corpus, log_to=name, sample_prompts='("12 / 3 = ?", "大海")', eval_every=4, data__val_fraction=0.1)  # fmt: skip # noqa: E501
    first = th.run_command(tmp_path / "cache", *arguments, before=th.signal_at_line(6, "SIGTERM"))
    assert first.returncode == 0 and "stopped by a signal" in first.stdout, first.stderr
    second = th.run_command(tmp_path / "cache", *arguments)
    assert second.returncode == 0 and "resumed from step" in second.stdout, second.stderr
    assert "warning" not in first.stdout + second.stdout
    read, pattern = {"wandb": (read_wandb, "offline-run-*/*.wandb"), "swanlab": (read_swanlab, "run-*/*.swanlab")}[name]
    files = sorted((tmp_path / "run" / name).glob(pattern))
    assert len(files) == 2 and files[0].name == files[1].name  # two pieces of one run
    rows = [row for file in files for row in read(file) if "loss" in row]
    lines = th.metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [line["step"] for line in lines] == list(range(1, 13))
    for row, line in zip(rows, lines, strict=True):
        assert {key: row[key] for key in line} == pytest.approx(line, rel=1e-6)  # swanlab keeps float32
    assert "val_loss" in rows[3]
