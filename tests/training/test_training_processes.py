"""Several processes train the run of one, agree on everything, and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import processes_helpers as ph
import pytest
import training_helpers as th
from tokenizer_variants import write_variant

from minimind_jax import workdir as workdirs
from minimind_jax.config import DataConfig, DistributedConfig
from minimind_jax.data import open_pretrain
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.training import processes

STEPS = 12
BOUND = 20.0  # seconds between the end of one process and that of the others


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, corpus) -> Callable[..., Path]:
    """The workdir of a run of this process on two of its devices."""

    def run(*arguments: str, data: Path = corpus, **values) -> Path:
        workdir = tmp_path_factory.mktemp("one") / "run"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
            th.run_here(*th.overrides(workdir, data, **{"mesh__data": 2, **values}), *arguments)
        return workdir

    return run


def record_batches(directory: Path, index: int) -> str:
    """Code for `before`: each process writes the rows that its devices get, with their place in the global batch."""
    return f"""
import numpy
from minimind_jax.training import loop
make_batch = loop.make_batch
def recording(job, step):
    batch = make_batch(job, step)
    for shard in batch["tokens"].addressable_shards:
        rows = shard.index[1].indices(batch["tokens"].shape[1])
        numpy.save("{directory}/%d-%d-{index}.npy" % (step, rows[0]), shard.data)
    return batch
loop.make_batch = recording
"""


def without_rates(workdir: Path) -> list[dict[str, float]]:
    timed = ("tokens_per_s", "real_tokens_per_s", "mfu", "data_wait", "peak_memory_gib")
    return [{k: v for k, v in line.items() if k not in timed} for line in th.metrics(workdir)]


def assert_equal_but_for_rounding(workdir: Path, alone: Path, step: int) -> None:
    for line, expected in zip(without_rates(workdir), without_rates(alone), strict=True):
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-6)  # rewards are small differences of large sums
    ours, theirs = th.checkpoint(workdir, step), th.checkpoint(alone, step)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_two_processes_train_the_run_of_one(tmp_path, corpus, cache, one_process):
    """Rows, metrics, validation and checkpoint; only process 0 speaks; one process reads what both wrote."""
    values = {"mesh__data": -1, "eval_every": 6, "data__val_fraction": 0.1}
    before = [record_batches(tmp_path, i) for i in range(2)]
    workdir = tmp_path / "run"
    said = ph.succeed(ph.start(cache, th.overrides(workdir, corpus, **values), before=before))
    assert "devices    2 x cpu (cpu), 2 process(es), mesh data=2 fsdp=1" in said

    alone = one_process(**values | {"mesh__data": 2})
    assert without_rates(workdir) == without_rates(alone) and len(th.losses(workdir)) == STEPS
    th.assert_same_checkpoint(workdir, alone, STEPS)
    assert th.checkpoint_steps(workdir) == th.checkpoint_steps(alone) == [8, 12]
    assert sorted(p.name for p in workdir.iterdir()) == sorted(p.name for p in alone.iterdir())
    loaded = [workdirs.load_model(path).params for path in (workdir, alone)]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, *loaded)))

    data = DataConfig(
        path=str(corpus), cache_dir=str(corpus.parent / "tokens"), max_seq_len=th.SEQ_LEN, val_fraction=0.1
    )
    rows, _ = open_pretrain(data, load_tokenizer(""), seed=0)
    for step in range(STEPS):
        parts = [np.load(tmp_path / f"{step}-{first}-{i}.npy")[0] for i, first in enumerate((0, 4))]
        expected = rows.batch(np.arange(step * th.BATCH_SIZE, (step + 1) * th.BATCH_SIZE))["tokens"]
        np.testing.assert_array_equal(np.concatenate(parts), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "layout"),
    [
        (1, {"mesh__data": 1, "mesh__fsdp": 2}),
        (2, {"mesh__data": 2, "mesh__fsdp": 2}),
        (2, {"mesh__data": 1, "mesh__fsdp": 4, "accum_steps": 2}),
    ],
)
def test_sharded_parameters(tmp_path, corpus, cache, one_process, devices, layout):
    values = layout | {"eval_every": 12, "data__val_fraction": 0.1, "sample_prompts": '("The sea",)'}
    workdir = tmp_path / "run"
    said = ph.succeed(ph.start(cache, th.overrides(workdir, corpus, **values), devices=devices))
    assert sum(line.startswith("  'The sea' -> ") for line in said) == 1
    alone = one_process(**values)
    if devices == 1:
        assert without_rates(workdir) == without_rates(alone)
        th.assert_same_checkpoint(workdir, alone, STEPS)
    else:  # gloo adds the sums of two processes, one process adds those of four devices: float32 rounding
        assert_equal_but_for_rounding(workdir, alone, STEPS)


@pytest.mark.slow
def test_a_resized_vocabulary(tmp_path, corpus, cache, one_process):
    base, small = tmp_path / "base", write_variant(tmp_path / "small", n_merges=1728, shuffle=1)
    th.run_here(*th.overrides(base, corpus, steps=2))
    values = {"init_from": base, "tokenizer": small, "tokenizer_change": "resize"}
    layout = {"mesh__data": 1, "mesh__fsdp": 2}
    said = ph.succeed(ph.start(cache, th.overrides(tmp_path / "run", corpus, **values | layout)))
    assert sum("resized from 6400 to 2048 rows" in line for line in said) == 1
    alone = one_process(**values | layout)
    assert without_rates(tmp_path / "run") == without_rates(alone)
    th.assert_same_checkpoint(tmp_path / "run", alone, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("own_caches", [False, True], ids=["one file system", "a disk each"])
def test_chat_stages(tmp_path, cache, one_process, own_caches):
    """SFT, then DPO with its reference and the statistics of answers; caches shared, or one for each process."""
    chats, pairs = th.write_chats(tmp_path / "chats.jsonl"), th.write_pairs(tmp_path / "pairs.jsonl")

    def caches(port: int, index: int) -> list[str]:
        return [f"--config.data.cache_dir={tmp_path}/disk{index}"] if own_caches else []

    def compare(recipe: str, data: Path, **values: Any) -> Path:
        values |= {"mesh__data": -1, "data__val_fraction": 0.2, "eval_every": 6, "steps": 6, "data__max_seq_len": 96}
        workdir = tmp_path / recipe
        said = ph.succeed(ph.start(cache, th.overrides(workdir, data, recipe, **values), own=caches))
        alone = one_process(data=data, recipe=recipe, **values | {"mesh__data": 2})
        # Compiled for two processes, the gradients' norm may come out with another last bit.
        assert_equal_but_for_rounding(workdir, alone, 6)
        assert any("before training" in line for line in said)
        return workdir

    sft = compare("sft_512", chats, init_from=one_process(), sample_prompts='("1 大海",)')
    dpo = compare("dpo", pairs, init_from=sft, optim__lr=1e-4)
    assert "answers/length" in th.metrics(dpo)[-1]
    if own_caches:  # process 1 reads the reference from the workdir
        assert (tmp_path / "disk0" / "reference").is_dir() and not (tmp_path / "disk1" / "reference").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 2), (1, 2), (2, 1)])
def test_resume(tmp_path, corpus, cache, one_process, first, then):
    workdir = tmp_path / "run"
    values = {"mesh__data": -1, "optim__schedule": "constant"}  # lr whatever the run's end
    for n, steps in ((first, 6), (then, STEPS)):
        said = ph.succeed(ph.start(cache, th.overrides(workdir, corpus, **values, steps=steps), n, devices=2 // n))
    assert "resumed from step 6" in said
    alone = one_process(optim__schedule="constant")
    assert th.losses(workdir) == th.losses(alone)
    th.assert_same_checkpoint(workdir, alone, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "receivers", [[(1, "SIGTERM")], [(0, "SIGINT")], [(1, "SIGTERM"), (0, "SIGTERM")]], ids=["one", "Ctrl-C", "both"]
)
def test_a_signal_to_any_process_stops_all_at_the_same_step(tmp_path, corpus, cache, one_process, receivers):
    workdir = tmp_path / "run"
    arguments = th.overrides(workdir, corpus, mesh__data=-1, save_every=0, optim__schedule="constant", steps=10**6)
    running = ph.start(cache, arguments)
    wait_for(lambda: th.lines_written(workdir) > 3, running)
    for index, name in receivers:
        running[index].send_signal(getattr(signal, name))
        time.sleep(0.05)
    said = ph.succeed(running)
    (saved,) = th.checkpoint_steps(workdir)
    assert f"stopped by a signal; step {saved} is saved: the same command continues from there" in said
    assert [step for step, _ in th.losses(workdir)] == list(range(1, saved + 1))

    more = th.overrides(workdir, corpus, mesh__data=-1, save_every=0, optim__schedule="constant", steps=saved + 5)
    assert f"resumed from step {saved}" in ph.succeed(ph.start(cache, more))
    alone = one_process(optim__schedule="constant", steps=saved + 5, save_every=0)
    assert th.losses(workdir) == th.losses(alone)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_the_run_continues(tmp_path, corpus, cache, one_process, victim):
    workdir = tmp_path / "run"
    arguments = th.overrides(workdir, corpus, mesh__data=-1, steps=STEPS)
    running = ph.start(cache, arguments, before=[th.slow_steps(600, first=7), ""])
    wait_for(lambda: th.lines_written(workdir) == 7 and th.checkpoint_steps(workdir) == [4], running)
    os.kill(running[victim].pid, signal.SIGKILL)
    killed = time.monotonic()
    other = ph.finish(running)[1 - victim]
    assert other.at - killed < BOUND
    assert f"process {victim} of 2" in ph.the_sentence(other) and "has died" in other.stderr
    assert "the same command continues from the last checkpoint" in other.stderr
    assert "resumed from step 4" in ph.succeed(ph.start(cache, arguments))
    alone = one_process()
    assert th.losses(workdir) == th.losses(alone)
    th.assert_same_checkpoint(workdir, alone, STEPS)


@pytest.mark.slow
def test_a_bug_in_one_process_is_its_traceback_and_a_sentence_in_the_others(tmp_path, corpus, cache):
    code = "import minimind_jax.training.loop as loop\nloop.make_batch = lambda job, step: [].missing"
    failed, other = (
        ph.finish(ph.start(cache, th.overrides(tmp_path / "run", corpus, mesh__data=-1), before=["", code]))[i]
        for i in (1, 0)
    )
    assert "AttributeError" in failed.stderr and "Traceback" in failed.stderr and failed.returncode == 1
    assert "process 1 of 2" in ph.the_sentence(other) and "AttributeError" in other.stderr


ENDED_BY = {
    "data missing on one": ([], ["--config.data.path=missing.jsonl"], "missing.jsonl does not exist"),
    "recipe differs": (
        [],
        ["--config.batch_size=16"],
        "batch_size is 8 in process 0 and 16 in process 1: start all processes by the same command",
    ),
    "mesh leaves a process out": (["--config.mesh.data=1"], ["--config.mesh.data=1"], "leaves devices out"),
    "init_from missing on both": (["--config.init_from=nowhere"], ["--config.init_from=nowhere"], "nowhere is not"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ENDED_BY)
def test_an_error_of_one_ends_all_with_one_sentence(tmp_path, corpus, cache, case):
    *own, message = ENDED_BY[case]
    began = time.monotonic()
    arguments = th.overrides(tmp_path / "run", corpus, mesh__data=-1)
    ended = ph.finish(ph.start(cache, arguments, own=lambda _, index: own[index]))
    assert all(message in ph.the_sentence(e) for e in ended)
    assert max(e.at for e in ended) - min(e.at for e in ended) < BOUND and time.monotonic() - began < 60
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_other_data_on_one_machine(tmp_path, corpus, cache):
    other = th.write_corpus(tmp_path / "corpus.jsonl", seed=1)
    own = [[], [f"--config.data.path={other}"]]
    running = ph.start(cache, th.overrides(tmp_path / "run", corpus, mesh__data=-1), own=lambda _, i: own[i])
    for ended in ph.finish(running):
        assert "data.content is" in ph.the_sentence(ended) and "on the same data" in ended.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_errors_that_only_process_0_looks_for(tmp_path, corpus, cache, one_process):
    """The workdir of another run, and one that is in use."""
    workdir = one_process()
    before = th.listing(workdir)
    for ended in ph.finish(ph.start(cache, th.overrides(workdir, corpus, mesh__data=-1, seed=5))):
        assert "holds another run: seed was 0, now 5" in ph.the_sentence(ended)
    assert th.listing(workdir) == before

    arguments = th.overrides(tmp_path / "run", corpus, mesh__data=-1, steps=10**6)
    running = ph.start(cache, arguments)
    wait_for(lambda: th.lines_written(tmp_path / "run") > 3, running)
    for ended in ph.finish(ph.start(cache, arguments)):
        assert f"in use by another run (process {running[0].pid})" in ph.the_sentence(ended)
    running[0].send_signal(signal.SIGTERM)
    ph.succeed(running)


@pytest.mark.slow
def test_a_workdir_on_a_disk_of_each_machine_is_refused(tmp_path, corpus, cache):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    before = [f"import os; os.chdir('{tmp_path / name}')" for name in ("a", "b")]
    for ended in ph.finish(ph.start(cache, th.overrides(Path("run"), corpus, mesh__data=-1), before=before)):
        assert "workdir run is not the same directory for all processes" in ph.the_sentence(ended)


@pytest.mark.slow
def test_a_port_in_use_and_a_process_that_never_comes(tmp_path, corpus, cache):
    arguments = th.overrides(tmp_path / "run", corpus)
    impatient = "import minimind_jax.training.processes as p; p._JOIN_SECONDS = 3.0"
    port = ph.free_port()
    with ph.socket.create_server(("", port)):
        result = th.run_command(cache, *arguments, *ph.flags(port, 2, 0))
        assert result.returncode == 1 and f"cannot listen on port {port} (Address already in use)" in result.stderr
    for index, message in ((0, "(process_id 1) did not come to"), (1, "process 0 is not to be reached at")):
        result = th.run_command(cache, *arguments, *ph.flags(port, 2, index), before=impatient)
        assert result.returncode == 1 and message in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [ph.slurm, ph.open_mpi])
def test_launchers_are_detected(tmp_path, corpus, cache, one_process, launcher):
    workdir = tmp_path / "run"
    ph.succeed(ph.start(cache, th.overrides(workdir, corpus, mesh__data=-1), environment=launcher))
    assert th.losses(workdir) == th.losses(one_process())


def test_one_process_agrees_with_itself(tmp_path):
    with processes.joined(DistributedConfig()), processes.first_alone(tmp_path / "cache"):
        processes.barrier()
        processes.check_same({"a": 1})
        assert processes.first() and processes.count() == 1
        assert processes.from_first(lambda: (1, 2)) == (1, 2) and processes.gather("x") == ["x"]
        assert processes.share(tmp_path)
    assert list(tmp_path.iterdir()) == []


def wait_for(condition: Callable[[], bool], running: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + ph.TIMEOUT
    while not condition():
        assert time.monotonic() < deadline and all(process.poll() is None for process in running)
        time.sleep(0.02)
