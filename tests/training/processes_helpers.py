"""Runs of several real processes on this machine."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import training_helpers as th

TIMEOUT = 240


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: str
    stderr: str
    at: float  # time.monotonic()


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def flags(port: int, n: int, index: int) -> list[str]:
    values = {"coordinator": f"localhost:{port}", "num_processes": n, "process_id": index}
    return [f"--config.distributed.{key}={value}" for key, value in values.items()]


def start(
    cache: Path,
    arguments: Sequence[str],
    n: int = 2,
    devices: int = 1,
    before: Sequence[str] = (),
    own: Callable[[int, int], list[str]] = lambda port, index: [],
    environment: Callable[[int, int], dict[str, str]] | None = None,
) -> list[subprocess.Popen[str]]:
    """`python train.py ARGUMENTS` in n processes of `devices` virtual devices each.

    Args:
      before: Python code for each of them.
      own: (port, index) -> more arguments.
      environment: (port, index) -> what a launcher would set; they then get no flags.
    """
    port = free_port()
    xla = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return [
        th.start_command(
            cache,
            *arguments,
            *(flags(port, n, i) if n > 1 and environment is None else []),
            *own(port, i),
            before=before[i] if before else "",
            environment={"XLA_FLAGS": xla} | (environment(port, i) if environment else {}),
        )
        for i in range(n)
    ]


def finish(processes: Sequence[subprocess.Popen[str]], timeout: float = TIMEOUT) -> list[Ended]:
    """Waits for all; kills what is left after `timeout` seconds, and fails."""
    deadline = time.monotonic() + timeout
    ended = {}
    while len(ended) < len(processes) and time.monotonic() < deadline:
        for i, process in enumerate(processes):
            if i not in ended and process.poll() is not None:
                ended[i] = time.monotonic()
        time.sleep(0.05)
    late = [i for i in range(len(processes)) if i not in ended]
    for i in late:
        processes[i].kill()
    outputs = [process.communicate() for process in processes]
    assert not late, f"processes {late} did not end: {outputs}"
    return [
        Ended(process.returncode, out, err, ended[i])
        for i, (process, (out, err)) in enumerate(zip(processes, outputs, strict=True))
    ]


# Its threads write into each other's lines.
_GLOO = re.compile(
    r"(\[Gloo\] Rank \d+| is connected to \d+ peer ranks\. Expected number of connected peer ranks is : \d+)*"
)


def succeed(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    """Waits until all have ended well, and said nothing but in process 0; its lines, without those of gloo in C++.

    Its stderr may hold the progress of slow work, as a slow machine shows it.
    """
    ended = finish(processes)
    assert [e.returncode for e in ended] == [0] * len(ended), ended
    said = [[line for line in e.stdout.splitlines() if not _GLOO.fullmatch(line)] for e in ended]
    errors = [[line for line in e.stderr.splitlines() if " s left" not in line and ": done" not in line] for e in ended]
    assert not any(said[1:]) and not any(errors) and not any(e.stderr for e in ended[1:]), ended
    return said[0]


def the_sentence(ended: Ended) -> str:
    """The one line of a process that ended because it had to, with exit code 1."""
    assert ended.returncode == 1, ended
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def slurm(port: int, index: int) -> dict[str, str]:
    """What `srun` sets on a machine with two tasks; JAX derives the port from the job's id."""
    return {
        "SLURM_JOB_ID": str(port % 4096),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    }


def open_mpi(port: int, index: int) -> dict[str, str]:
    return {
        "OMPI_MCA_orte_hnp_uri": f"{port * 4096}.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(index),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
    }
