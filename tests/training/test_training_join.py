"""Which processes belong together: flags, launchers' variables, halves of either."""

from __future__ import annotations

import os

import jax
import processes_helpers as ph
import pytest

from minimind_jax.config import DistributedConfig
from minimind_jax.errors import UserError
from minimind_jax.training import join


@pytest.fixture
def clean(monkeypatch):
    for name in [n for n in os.environ if n.startswith(("SLURM_", "OMPI_", "JAX_COORDINATOR", "KUBERNETES_", "TPU_"))]:
        monkeypatch.delenv(name)
    return monkeypatch


def test_nothing_detected_is_one_process(clean):
    assert join.find_place(DistributedConfig()) is None
    assert join.find_place(DistributedConfig("node1:1234", 1, 0)) is None
    clean.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")  # every pod has it
    assert join.find_place(DistributedConfig()) is None


def test_one_task_of_a_larger_allocation_is_one_process(clean, capsys):
    """An interactive step, and a batch script that calls python without srun."""
    for name, value in ph.slurm(1, 0).items():
        clean.setenv(name, value)
    assert join.find_place(DistributedConfig()) == join.Place("localhost", 65535 - 4096 + 2, 2, 0)
    clean.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert join.find_place(DistributedConfig()) is None and capsys.readouterr().err == ""
    clean.delenv("SLURM_STEP_NUM_TASKS")
    clean.delenv("SLURM_STEP_NODELIST")
    assert join.find_place(DistributedConfig()) is None
    assert "not started by srun: it trains alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DistributedConfig("node1:1234"), "need distributed.num_processes and distributed.process_id too"),
        (DistributedConfig("", 2, 0), "need distributed.coordinator too"),
        (DistributedConfig("node1:1234", 2), "need distributed.process_id too"),
        (DistributedConfig("node1:1234", 2, 2), "0 <= process_id < num_processes"),
        (DistributedConfig("node1", 2, 0), "must be HOST:PORT"),
        (DistributedConfig("node1:99999", 2, 0), "must be HOST:PORT"),
    ],
)
def test_half_a_configuration_is_one_sentence(clean, config, message):
    with pytest.raises(UserError, match=message) as error:
        join.find_place(config)
    if "too" in message:
        assert "set distributed.coordinator=HOST:PORT of process 0, num_processes and process_id" in str(error.value)
    assert join.find_place(DistributedConfig("node1:1234", 2, 1)) == join.Place("node1", 1234, 2, 1)


def test_values_come_from_flags_first_and_then_from_the_environment(clean):
    clean.setenv("JAX_COORDINATOR_ADDRESS", "[::1]:77")
    assert join.find_place(DistributedConfig("", 4, 3)) == join.Place("::1", 77, 4, 3)
    assert join.find_place(DistributedConfig("a:1", 4, 3)) == join.Place("a", 1, 4, 3)
    for name, value in ph.slurm(1, 1).items():
        clean.setenv(name, value)
    assert join.find_place(DistributedConfig("a:1")) == join.Place("a", 1, 2, 1)


def test_a_launcher_that_jax_does_not_understand_is_one_sentence(clean):
    clean.setenv("OMPI_COMM_WORLD_SIZE", "2")  # Open MPI 5 leaves no address
    with pytest.raises(UserError, match=r"need distributed|set distributed"):
        join.find_place(DistributedConfig())


@pytest.mark.parametrize(
    ("hosts", "environment", "expected"),
    [
        (["a", "b"], {}, None),
        (["a", "a", "b", "b"], {}, "1"),
        (["a", "a", "b", "b"], {"CUDA_VISIBLE_DEVICES": "3"}, None),
        (["a", "a", "b", "b"], {"CUDA_VISIBLE_DEVICES": "0,1"}, "1"),
        (["a", "a", "b", "b"], {"JAX_LOCAL_DEVICE_IDS": "0,1"}, None),
    ],
)
def test_processes_of_one_machine_take_a_gpu_each(monkeypatch, hosts, environment, expected):
    for name in ("CUDA_VISIBLE_DEVICES", "JAX_LOCAL_DEVICE_IDS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    chosen = {}
    monkeypatch.setattr(jax.config, "update", chosen.__setitem__)
    join.choose_devices(hosts, len(hosts) - 1)
    assert chosen == ({"jax_cuda_visible_devices": expected} if expected else {})
