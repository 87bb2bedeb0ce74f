"""Which other processes belong to this run: by flags, or by what a launcher has left in the environment."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import jax
from jax._src.clusters import ClusterEnv  # `jax.distributed` detects a cluster only in order to join it at once

from minimind_jax.config import DistributedConfig
from minimind_jax.errors import UserError, first_line

DETECTION_SECONDS = 300


@dataclass(frozen=True)
class Place:
    """Where a process stands among those of its run."""

    host: str  # of process 0
    port: int
    count: int
    index: int

    def __str__(self) -> str:
        return f"process {self.index} of {self.count}"


def find_place(config: DistributedConfig) -> Place | None:
    """This process's place, None where it trains alone.

    Values that the config leaves out come from Slurm, Open MPI, Kubernetes or a TPU pod, as JAX reads them.
    JAX_COORDINATOR_ADDRESS and JAX_COORDINATOR_PORT count too.

    Raises UserError for half a configuration, and where a launcher's variables do not suffice.
    """
    coordinator = config.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS") or None
    count = config.num_processes or None
    index = config.process_id if config.process_id >= 0 else None
    launcher = _launcher()
    if launcher is None and (coordinator, count, index) == (None, None, None):
        return None
    if launcher and None in (coordinator, count, index):
        # JAX takes no notice of mpi4py by itself, and knows Open MPI only up to version 4.
        mpi = launcher == "mpirun" and "OMPI_MCA_orte_hnp_uri" not in os.environ and find_spec("mpi4py")
        try:
            coordinator, count, index, _ = ClusterEnv.auto_detect_unset_distributed_params(
                coordinator, count, index, [], "mpi4py" if mpi else None, DETECTION_SECONDS
            )
        except Exception as e:  # whatever a cluster's interface raises
            raise UserError(
                f"{launcher} has started several processes but JAX cannot tell how they find each other "
                f"({first_line(e)}): set distributed.coordinator, num_processes and process_id"
            ) from None
    values: dict[str, Any] = {"coordinator": coordinator, "num_processes": count, "process_id": index}
    missing = [f"distributed.{key}" for key, value in values.items() if value is None]
    if coordinator is None or count is None or index is None:
        raise UserError(
            f"several processes need {' and '.join(missing)} too: set distributed.coordinator=HOST:PORT of process 0, "
            "num_processes and process_id (0 to num_processes - 1), or start them by srun"
        )
    if count < 1 or not 0 <= index < count:
        raise UserError(
            f"distributed.num_processes={count} and distributed.process_id={index} do not fit together: "
            "it must be 0 <= process_id < num_processes"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"distributed.coordinator={coordinator!r} must be HOST:PORT of process 0, such as node1:12345")
    return Place(host.strip("[]"), int(port), count, index) if count > 1 else None


def _launcher() -> str | None:
    """What has started this process as one of several, None if nothing did."""
    env = os.environ
    if "SLURM_PROCID" in env and _number("SLURM_STEP_NUM_TASKS", _number("SLURM_NTASKS", 1)) > 1:
        if "SLURM_STEP_NODELIST" in env:
            return "srun"
        print(
            f"SLURM_NTASKS={env.get('SLURM_NTASKS')}, but this process was not started by srun: it trains alone",
            file=sys.stderr,
        )
    if _number("OMPI_COMM_WORLD_SIZE", 1) > 1:
        return "mpirun"
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env and find_spec("kubernetes"):
        return "Kubernetes"
    if "," in env.get("TPU_WORKER_HOSTNAMES", ""):
        return "The TPU pod"
    return None


def _number(variable: str, otherwise: int) -> int:
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() else otherwise


def choose_devices(hosts: list[str], index: int) -> None:
    """One GPU for each process where several share a machine, else all that are visible.

    Does nothing where JAX_LOCAL_DEVICE_IDS decides, or where the launcher shows each process one GPU only.

    Args:
      hosts: of every process, by its index.
    """
    local = [i for i, host in enumerate(hosts) if host == hosts[index]]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    narrowed = visible != "" and "," not in visible
    if len(local) > 1 and not narrowed and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
        jax.config.update("jax_cuda_visible_devices", str(local.index(index)))
