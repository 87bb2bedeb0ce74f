"""scripts/: they are read by bash, start what they say, and pass signals on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SCRIPTS = sorted((REPOSITORY / "scripts").glob("*.sh"))

# A Slurm of two nodes on this machine: what srun does with its command, its variables and its signals.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys
command = [a for i, a in enumerate(sys.argv[1:], 1) if not all(b.startswith("--") for b in sys.argv[1:i + 1])]
names = {{"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}}
tasks = [subprocess.Popen(command, env={{**os.environ, **names, "SLURM_PROCID": str(i)}}) for i in range(2)]
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = '#!/bin/bash\necho "scontrol $*"\n'


def start(script: str, workdir: Path, steps: int, **environment: str) -> subprocess.Popen[str]:
    sys.path.insert(0, str(REPOSITORY / "tests" / "training"))
    import training_helpers as th

    corpus = th.write_corpus(workdir.parent / "corpus.jsonl")
    arguments = th.overrides(workdir, corpus, mesh__data=-1, steps=steps, save_every=0)
    return subprocess.Popen(
        ["bash", REPOSITORY / "scripts" / script, *arguments],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "XDG_CACHE_HOME": str(workdir.parent / "cache"),
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_lines(workdir: Path, process: subprocess.Popen[str]) -> None:
    metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + 240
    while not metrics.exists() or metrics.read_text("utf-8").count("\n") < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_it(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert os.access(script, os.X_OK)


@pytest.mark.slow
def test_two_processes_here(tmp_path):
    process = start("two_processes.sh", tmp_path / "run", 10**6, PORT="23571")
    wait_for_lines(tmp_path / "run", process)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and stderr == ""
    assert "2 process(es)" in stdout and "stopped by a signal; step" in stdout
    failing = start("two_processes.sh", tmp_path / "run", 0, PORT="23571")
    _, stderr = failing.communicate(timeout=120)
    assert failing.returncode == 1 and stderr.count("steps and epochs are both 0") == 2  # its own, or the other's


@pytest.mark.slow
def test_slurm_saves_before_the_limit_and_is_queued_again(tmp_path):
    """Not Slurm itself: a stand-in for srun and scontrol, with the variables that JAX reads."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    values = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "12345", "SLURM_SUBMIT_DIR": str(REPOSITORY)}
    process = start("slurm.sh", tmp_path / "run", 10**6, **values)
    wait_for_lines(tmp_path / "run", process)
    process.send_signal(signal.SIGUSR1)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and stderr == ""
    assert "2 process(es)" in stdout and "stopped by a signal; step" in stdout
    assert stdout.endswith("scontrol requeue 12345\n")
    (saved,) = [int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()]
    again = start("slurm.sh", tmp_path / "run", saved + 2, **values)
    stdout, _ = again.communicate(timeout=240)
    assert again.returncode == 0 and f"resumed from step {saved}" in stdout and "scontrol" not in stdout
