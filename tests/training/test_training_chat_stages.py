"""SFT and DPO on the loop that pretraining uses: chained, exact over devices and accumulation, resumable."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import training_helpers as th

from minimind_jax.errors import UserError
from minimind_jax.training import reference

pytestmark = pytest.mark.slow  # whole runs

CHAT = {"data__max_seq_len": 64, "accum_steps": 2, "eval_every": 6, "data__val_fraction": 0.2}
RATES = {"sft": 1e-2, "dpo": 1e-3}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("data")
    return {"sft": th.write_chats(directory / "sft.jsonl"), "dpo": th.write_pairs(directory / "dpo.jsonl")}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained workdir."""
    directory = tmp_path_factory.mktemp("base")
    corpus = th.write_corpus(directory / "corpus.jsonl")
    th.run_here(*th.overrides(directory / "run", corpus, steps=4))
    return directory / "run"


def arguments(stage: str, workdir: Path, files: dict[str, Path], init_from: Path, **changes: Any) -> list[str]:
    recipe = {"sft": "sft_512", "dpo": "dpo"}[stage]
    values = CHAT | {"init_from": init_from, "optim__lr": RATES[stage]} | changes
    return th.overrides(workdir, files[stage], recipe, **values)


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, Path], base: Path, cache: Path
) -> dict[str, Path]:
    """The workdir of 12 steps at once, by stage; DPO starts from SFT's."""
    done: dict[str, Path] = {}
    for stage in ("sft", "dpo"):
        init_from = done.get("sft", base)
        done[stage] = tmp_path_factory.mktemp(stage) / "run"
        result = th.run_command(cache, *arguments(stage, done[stage], files, init_from))
        assert result.returncode == 0, result.stderr
        (done[stage].parent / "stdout").write_text(result.stdout)
    return done


def test_sft_learns_the_answers(uninterrupted: dict[str, Path]) -> None:
    lines = th.metrics(uninterrupted["sft"])
    assert lines[-1]["val_loss"] < 0.7 * lines[0]["loss"]
    assert lines[-1]["val_bpb"] > 0
    # An answer of one or two words, a question of several: targets are far fewer than tokens.
    assert all(0 < line["target_tokens"] < 0.6 * th.BATCH_SIZE * 64 for line in lines)


def test_dpo_learns_the_preference(uninterrupted: dict[str, Path]) -> None:
    first, *_, last = th.metrics(uninterrupted["dpo"])
    # Before the first update policy and reference are the same: cached values must equal those of the step itself.
    for key in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert first[key] == pytest.approx(0.0, abs=1e-5)
    sft_weight = 1.0
    assert first["loss"] == pytest.approx(math.log(2) + sft_weight * first["nll/chosen"], abs=1e-5)
    assert last["val_rewards/accuracies"] > 0.9 and last["val_rewards/margins"] > 0.05
    assert {"logps/chosen", "logps/rejected", "lengths/chosen", "lengths/rejected", "pairs"} <= last.keys()
    assert {"answers/repetition", "answers/length", "answers/unfinished"} <= last.keys()
    output = (uninterrupted["dpo"].parent / "stdout").read_text()
    for name in (
        "held-out reward accuracy",
        "held-out SFT loss on chosen answers",
        "repeated 4-grams",
        "tokens of sampled",
    ):
        assert f"{name}" in output and "before ->" in output


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_killed_run_continues_bit_for_bit(
    tmp_path: Path, stage: str, files: dict[str, Path], base: Path, cache: Path, uninterrupted: dict[str, Path]
) -> None:
    init_from = tmp_path / "init"
    shutil.copytree(base if stage == "sft" else uninterrupted["sft"], init_from)
    # identity holds the path of init_from, the model's content is what counts here
    command = arguments(stage, tmp_path / "run", files, init_from)
    killed = th.run_command(cache, *command, before=th.signal_at_line(6, "SIGKILL", saved=4))
    assert killed.returncode == -9, killed.stderr
    # A begun run needs neither the model it started from nor the cache of its reference.
    shutil.rmtree(init_from)
    shutil.rmtree(files[stage].parent / "tokens" / "reference", ignore_errors=True)
    again = th.run_command(cache, *command)
    assert again.returncode == 0, again.stderr
    assert th.resumed_from(again.stdout) == 4
    assert th.losses(tmp_path / "run") == th.losses(uninterrupted[stage])
    th.assert_same_checkpoint(tmp_path / "run", uninterrupted[stage], 12)


@pytest.mark.parametrize("stage", ["sft", "dpo"])
@pytest.mark.parametrize(("devices", "accum_steps"), [(8, 1), (1, 1), (1, 4), (2, 2), (4, 1), (4, 2), (2, 4)])
def test_devices_and_accumulation_change_nothing(
    tmp_path: Path, stage: str, files: dict[str, Path], base: Path, uninterrupted: dict[str, Path],
    devices: int, accum_steps: int,
) -> None:  # fmt: skip
    init_from = base if stage == "sft" else uninterrupted["sft"]
    changes = {"mesh__data": devices, "accum_steps": accum_steps, "steps": 3, "save_every": 0, "eval_every": 3}
    # The schedule is the one of 12 steps in the run that this is compared with.
    th.run_here(*arguments(stage, tmp_path / "run", files, init_from, optim__schedule="constant", **changes))
    th.run_here(
        *arguments(
            stage, tmp_path / "one", files, init_from, optim__schedule="constant", steps=3, save_every=0, eval_every=3
        )
    )
    for ours, theirs in zip(th.metrics(tmp_path / "run"), th.metrics(tmp_path / "one"), strict=True):
        speed = {"tokens_per_s", "real_tokens_per_s", "mfu", "data_wait", "peak_memory_gib"}
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - speed:
            assert ours[key] == pytest.approx(theirs[key], rel=2e-4, abs=2e-4), key


def test_the_reference_is_continued_where_it_stopped(
    tmp_path: Path, files: dict[str, Path], uninterrupted: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"data__cache_dir": tmp_path / "cache", "steps": 1, "eval_every": 0}
    th.run_here(*arguments("dpo", tmp_path / "whole", files, uninterrupted["sft"], **options))
    stored = tmp_path / "cache" / "reference"
    train_file = max(stored.glob("*.npy"), key=lambda file: len(np.load(file)))  # the other one is of validation
    whole = np.load(train_file)
    # As if it had been interrupted: rows from the third on are missing, and the first two are marked.
    partial = whole.copy()
    partial[2:] = np.nan
    partial[:2] *= 2
    np.save(train_file.with_suffix("").with_suffix(".partial.npy"), partial)
    train_file.unlink()
    th.run_here(*arguments("dpo", tmp_path / "again", files, uninterrupted["sft"], **options))
    continued = np.load(train_file)
    assert np.array_equal(continued[:2], 2 * whole[:2])
    assert np.allclose(continued[2:], whole[2:], atol=1e-5)
    # A second run with the same reference computes nothing.
    monkeypatch.setattr(reference, "_compute", lambda *_: pytest.fail("computed again"))
    th.run_here(*arguments("dpo", tmp_path / "third", files, uninterrupted["sft"], **options))


def test_without_reference_nothing_is_computed_before(
    tmp_path: Path, files: dict[str, Path], uninterrupted: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_compute", lambda *_: pytest.fail("simpo has no reference"))
    th.run_here(
        *arguments("dpo", tmp_path / "run", files, uninterrupted["sft"], dpo__loss="simpo", dpo__beta=2.0, steps=2)
    )
    assert not (tmp_path / "run" / "reference").exists()


def test_another_preference_loss_is_another_run(
    tmp_path: Path, files: dict[str, Path], uninterrupted: dict[str, Path]
) -> None:
    with pytest.raises(UserError, match=r"holds another run: dpo\.beta was 0\.1, now 0\.2"):
        th.run_here(*arguments("dpo", uninterrupted["dpo"], files, uninterrupted["sft"], dpo__beta=0.2))


def test_dpo_needs_a_model(tmp_path: Path, files: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="stage dpo improves a model that can chat already: name it by"):
        th.run_here(*th.overrides(tmp_path / "run", files["dpo"], "dpo", init_from=""))


@pytest.mark.parametrize(
    ("stage", "line", "words"),
    [
        ("sft", '{"conversations": [{"role": "bot", "content": "x"}]}', "`conversations[0].role` is 'bot'"),
        ("sft", '{"conversations": [{"role": "user", "content": "x"}]}', "assistant"),
        ("sft", '{"conversations": [{"role": "user", "content": ""}, {"role": "assistant", "content": "y"}]}',
         "`conversations[0].content` is empty"),
        ("sft", '{"conversations": [{"role": "user", "content": "x"}, '
         '{"role": "assistant", "content": "", "tool_calls": "[{"}]}', "`conversations[1].tool_calls`"),
        ("dpo", '{"rejected": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}', "`chosen`"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_with_its_field(tmp_path: Path, base: Path, stage: str, line: str, words: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"\n{line}\n", "utf-8")
    with pytest.raises(UserError) as e:
        th.run_here(*arguments(stage, tmp_path / "run", {stage: path}, base))
    assert f"{path}:2: " in str(e.value) and words in str(e.value)
    assert not (tmp_path / "run").exists()
