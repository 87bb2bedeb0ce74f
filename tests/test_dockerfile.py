"""The Dockerfile, without docker: what it says, and its install lines run in a clean environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dockerfile_helpers import Instruction, arguments, copied, environment, ignore_patterns, instructions, is_ignored

REPOSITORY = Path(__file__).parents[1]
CONTENT = instructions(REPOSITORY / "Dockerfile")
IGNORED = ignore_patterns(REPOSITORY / ".dockerignore")
BUILD_CPU = {"REQUIREMENTS": "requirements.txt"}


def indices(name: str, text: str = "") -> list[int]:
    return [i for i, instruction in enumerate(CONTENT) if instruction.name == name and text in instruction.value]


def test_it_starts_from_a_slim_python_that_the_project_allows():
    assert CONTENT[0] == Instruction("FROM", "python:3.11-slim")
    assert {i.name for i in CONTENT} == {"FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "CMD"}
    assert 'requires-python = ">=3.11"' in (REPOSITORY / "pyproject.toml").read_text("utf-8")


def test_it_ends_as_a_user_who_owns_what_runs_write():
    (user,) = indices("USER")
    assert CONTENT[user].value == "minimind" and not indices("RUN")[-1] > user
    (made,) = indices("RUN", "useradd")
    assert "--uid ${UID} minimind" in CONTENT[made].value
    owned = CONTENT[made].value.split("install -d -o minimind -g minimind ")[1].split()
    (workdir,) = indices("WORKDIR")
    assert {CONTENT[workdir].value, environment(CONTENT)["XDG_CACHE_HOME"]} <= set(owned)
    (code,) = indices("COPY", ". .")
    assert "--chown=minimind:minimind" in CONTENT[code].value


def test_requirements_are_a_layer_before_the_code():
    (install,), (code,) = indices("RUN", "pip install"), indices("COPY", ". .")
    (needed,) = [i for i in indices("COPY") if i != code]
    assert needed < install < code
    assert arguments(CONTENT)["REQUIREMENTS"] == "requirements-cuda.txt"
    assert set(copied(CONTENT[needed])[0]) == {"requirements.txt", "requirements-cuda.txt"}


def test_what_is_copied_is_there_and_not_ignored():
    for i in indices("COPY"):
        for source in copied(CONTENT[i])[0]:
            assert (REPOSITORY / source).exists() and not is_ignored(source, IGNORED)
    for path in (
        "train.py",
        "configs/pretrain.py",
        "minimind_jax/tokenizer/minimind/tokenizer.json",
        "convert/to_hf.py",
    ):
        assert (REPOSITORY / path).is_file() and not is_ignored(path, IGNORED)
    for path in (".git/config", ".venv/bin/python", "out/pretrain/config.json", "dataset/a.jsonl", "tests/__pycache__"):
        assert is_ignored(path, IGNORED)


def test_the_commands_in_its_head_name_what_it_has():
    head = (REPOSITORY / "Dockerfile").read_text("utf-8").split("FROM")[0]
    for name in arguments(CONTENT):
        assert f"--build-arg {name}=" in head
    (workdir,) = indices("WORKDIR")
    volumes = [word.split(":")[1].strip('"') for word in head.split() if ":/" in word]
    assert volumes == [f"{CONTENT[workdir].value}/dataset", f"{CONTENT[workdir].value}/out", "/cache"]
    assert "--gpus all" in head and "--shm-size=" in head and "driver of\n# 525 or newer" in head


# --- Its install lines -------------------------------------------------------------------------------------


def in_venv(venv: Path, command: str, directory: Path, **variables: str) -> str:
    """What a shell prints for `command`, with the venv's programs first and nothing of this environment's Python."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS", "VIRTUAL_ENV")}
    path = f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-ec", command],
        cwd=directory,
        env={**inherited, **variables, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def new_venv(path: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", path], check=True)
    return path


@pytest.mark.slow
def test_the_image_for_cpus_trains(tmp_path: Path):
    """COPY and the install lines as a build would do them, then a training run as the image's user would start it."""
    venv, place, cache = new_venv(tmp_path / "venv"), tmp_path / "workspace", tmp_path / "cache"
    place.mkdir()
    cache.mkdir()
    variables = environment(CONTENT) | {"XDG_CACHE_HOME": str(cache)}
    installed = 0
    for instruction in CONTENT:
        if instruction.name == "COPY":
            for source in copied(instruction)[0]:
                if source == ".":
                    listed = subprocess.run(
                        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True
                    )
                    names = listed.stdout.splitlines()
                else:
                    names = [source]
                for name in names:
                    if (REPOSITORY / name).is_file() and not is_ignored(name, IGNORED):
                        (place / name).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copy(REPOSITORY / name, place / name)
        elif instruction.name == "RUN" and "pip install" in instruction.value:
            in_venv(venv, instruction.value, place, **variables, **BUILD_CPU)
            installed += 1
    assert installed == 1
    packages = {p["name"].lower() for p in json.loads(in_venv(venv, "python -m pip list --format json", place))}
    assert "jax" in packages and not {"torch", "pytest"} & packages
    in_venv(venv, "python -m minimind_jax.data.generate --out dataset", place, **variables)
    train = "python train.py --config configs/pretrain.py:smoke --config.data.path=dataset/pretrain.jsonl"
    out = in_venv(venv, f"{train} --config.steps=3", place, **variables)
    assert "pretrain: 3 steps" in out and "1 x cpu" in out
    assert (place / "out" / "smoke" / "pretrain" / "checkpoints" / "3").is_dir()
    assert (cache / "minimind_jax" / "tokens").is_dir()


@pytest.mark.slow
def test_the_requirements_for_gpus_resolve(tmp_path: Path):
    """What the default build would install; nothing of it is downloaded where the index has metadata apart."""
    venv = new_venv(tmp_path / "venv")
    (install,) = (i.value for i in CONTENT if i.name == "RUN" and "pip install" in i.value)
    offered = subprocess.run(
        [
            venv / "bin" / "python",
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--dest",
            tmp_path,
            "jax-cuda12-plugin>=0.10.2",
        ],
        capture_output=True,
        text=True,
    )
    if offered.returncode:
        pytest.skip(f"the package index has no jax-cuda12-plugin for this Python: {offered.stderr[-300:]}")
    report = tmp_path / "report.json"
    dry = install.replace("pip install", f"pip install -q --dry-run --report {report}")
    in_venv(venv, dry, REPOSITORY, **arguments(CONTENT))
    chosen = {
        i["metadata"]["name"].lower(): i["metadata"]["version"] for i in json.loads(report.read_text())["install"]
    }
    assert chosen["jax"] == chosen["jax-cuda12-plugin"] == chosen["jax-cuda12-pjrt"]
    assert chosen["nvidia-cuda-runtime-cu12"].startswith("12.") and "nvidia-nccl-cu12" in chosen
