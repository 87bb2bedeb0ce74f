"""Checkpoints that were cut short, lost files or had bits flipped: told, kept aside, and left for one before."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import processes_helpers as ph
import pytest
import training_helpers as th

from convert import to_hf
from minimind_jax import checkpoint_files
from minimind_jax.checkpoint_files import CHECKSUMS, DamagedCheckpointError, check
from minimind_jax.errors import UserError
from minimind_jax.training.checkpoint import ITEMS, newest_readable
from minimind_jax.workdir import Workdir, load_model

pytestmark = pytest.mark.slow  # whole runs

OPTIONS = {"save_every": 2, "keep": 3}


def flip(file: Path) -> None:
    content, rng = bytearray(file.read_bytes()), random.Random(file.name)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def be_a_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "emptied": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "grown": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "flipped": flip,
    "zeroed": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "gone": Path.unlink,
    "unreadable": be_a_directory,
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory, corpus, cache) -> Path:
    """A workdir with checkpoints of steps 2, 4 and 6."""
    workdir = tmp_path_factory.mktemp("sound") / "run"
    done = th.run_command(cache, *th.overrides(workdir, corpus, steps=6, **OPTIONS))
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture
def damaged(sound, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sound, tmp_path / "run"))


@pytest.fixture(scope="module")
def resumed_from_4(sound, tmp_path_factory, corpus, cache) -> Path:
    """What the run becomes from the checkpoint of step 4, with nothing damaged."""
    workdir = Path(shutil.copytree(sound, tmp_path_factory.mktemp("resumed") / "run"))
    shutil.rmtree(workdir / "checkpoints" / "6")
    done = th.run_command(cache, *th.overrides(workdir, corpus, steps=8, **OPTIONS))
    assert done.returncode == 0 and th.resumed_from(done.stdout) == 4
    return workdir


def files_of(checkpoint: Path, *items: str) -> list[Path]:
    return sorted(path for item in items or ITEMS for path in (checkpoint / item).rglob("*") if path.is_file())


def forget_checksums(workdir: Path) -> None:
    """As a version that knew none wrote it."""
    for file in workdir.glob(f"checkpoints/*/{CHECKSUMS}"):
        file.unlink()


def check_set_aside(workdir: Path, stderr: str, step: int, continued: int, file: str) -> None:
    (line,) = stderr.splitlines()
    assert line.startswith(f"warning: checkpoint {workdir / 'checkpoints' / str(step)} is damaged (") and file in line
    assert f"it is kept as {workdir / 'damaged' / str(step)}, the run continues from step {continued}" in line


# --- What is found ------------------------------------------------------------------------------------


def test_all_that_is_committed_carries_checksums_that_sha256sum_confirms(sound):
    for step in (2, 4, 6):
        where = sound / "checkpoints" / str(step)
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", CHECKSUMS], cwd=where, check=True)
        listed = [line[66:] for line in (where / CHECKSUMS).read_text().splitlines()[:-1]]
        assert [where / name for name in listed] == sorted(files_of(where))
        assert not list(where.glob(".*"))


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_kind_of_damage_to_every_file_is_found_and_kept_aside(kind, damaged, capsys):
    newest = damaged / "checkpoints" / "6"
    intact = damaged.parent / "intact"
    shutil.copytree(newest, intact)
    names = [file.relative_to(newest) for file in files_of(newest)]
    assert len(names) > 20
    for name in [*names, Path(CHECKSUMS)]:
        if kind == "gone" and name == Path(CHECKSUMS):
            continue  # as if it were older than checksums
        DAMAGES[kind](newest / name)
        left = th.listing(newest)
        assert newest_readable(Workdir(damaged)) == 4
        check_set_aside(damaged, capsys.readouterr().err, 6, 4, name.as_posix())
        assert not newest.exists() and th.listing(damaged / "damaged" / "6") == left
        shutil.rmtree(damaged / "damaged")
        shutil.copytree(intact, newest)
    assert newest_readable(Workdir(damaged)) == 6 and not capsys.readouterr().err


@pytest.mark.parametrize("item", ITEMS)
def test_a_missing_item_is_damage_with_checksums_and_without(item, damaged, capsys):
    shutil.rmtree(damaged / "checkpoints" / "6" / item)
    assert newest_readable(Workdir(damaged)) == 4
    check_set_aside(damaged, capsys.readouterr().err, 6, 4, item)
    forget_checksums(damaged)
    shutil.rmtree(damaged / "checkpoints" / "4" / item)
    assert newest_readable(Workdir(damaged)) == 2
    check_set_aside(damaged, capsys.readouterr().err, 4, 2, item)
    assert Workdir(damaged).steps() == [2]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(damaged, capsys):
    (file,) = files_of(damaged / "checkpoints" / "6", "meta")[-1:]
    file.chmod(0)
    assert newest_readable(Workdir(damaged)) == 4
    check_set_aside(damaged, capsys.readouterr().err, 6, 4, f"Permission denied: {file}")


def test_flipped_bits_anywhere_are_found(damaged):
    newest, rng = damaged / "checkpoints" / "6", random.Random(1)
    for file in [*files_of(newest), newest / CHECKSUMS] * 3:
        content = file.read_bytes()
        changed = bytearray(content)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        with pytest.raises(DamagedCheckpointError):
            check(newest, ITEMS)
        file.write_bytes(content)
    check(newest, ITEMS)


def test_only_items_that_are_read_are_looked_at(damaged):
    for file in files_of(damaged / "checkpoints" / "6", "opt_state", "meta"):
        file.unlink()
    assert load_model(damaged).step == 6


@pytest.mark.parametrize("kind", [kind for kind in DAMAGES if kind not in ("grown", "flipped")])
def test_without_checksums_what_cannot_be_read_is_found(kind, damaged, capfd):
    forget_checksums(damaged)
    assert newest_readable(Workdir(damaged)) == 6
    newest = damaged / "checkpoints" / "6"
    # Orbax leaves some files that it never reads again; of these are none.
    needed = [f for f in files_of(newest) if f.name in ("_METADATA", "metadata") or f.parent.name == "d"]
    needed = [f for f in needed if f.stat().st_size > 10_000 or f.parent.name != "d" or f.parents[1].name in ITEMS]
    assert len(needed) > 5
    for file in needed:
        content = file.read_bytes()
        DAMAGES[kind](file)
        with pytest.raises(DamagedCheckpointError) as error:
            check(newest, ITEMS)
        assert "\n" not in str(error.value) and len(str(error.value)) < 700
        if file.is_dir():
            file.rmdir()
        file.write_bytes(content)
    assert newest_readable(Workdir(damaged)) == 6
    assert capfd.readouterr() == ("", "")


def test_too_little_memory_is_no_damage(damaged, monkeypatch):
    def too_large(file):
        raise MemoryError

    monkeypatch.setattr(checkpoint_files, "_hash", too_large)
    with pytest.raises(MemoryError):
        newest_readable(Workdir(damaged))
    assert Workdir(damaged).steps() == [2, 4, 6]


def test_nothing_is_moved_where_none_can_be_read(damaged, sound, corpus, capsys, monkeypatch, cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    for step in (2, 4, 6):
        DAMAGES["cut"](files_of(damaged / "checkpoints" / str(step), "opt_state")[-1])
    before = th.listing(damaged)
    with pytest.raises(UserError, match=r"checkpoints/6 is damaged \(.*and so are all others \(2, 4\): put a"):
        th.run_here(*th.overrides(damaged, corpus, steps=8, **OPTIONS))
    after = th.listing(damaged)
    assert after.pop(".lock") and before.pop(".lock") and after == before and not capsys.readouterr().err
    shutil.rmtree(damaged / "checkpoints" / "6")
    shutil.copytree(sound / "checkpoints" / "6", damaged / "checkpoints" / "6")
    th.run_here(*th.overrides(damaged, corpus, steps=7, **OPTIONS))
    assert th.resumed_from(capsys.readouterr().out) == 6


def test_what_was_kept_aside_is_never_replaced(damaged, sound, capsys):
    for place in ("6", "6-2", "6-3"):
        DAMAGES["cut"](files_of(damaged / "checkpoints" / "6")[-1])
        assert newest_readable(Workdir(damaged)) == 4
        assert f"kept as {damaged / 'damaged' / place}," in capsys.readouterr().err
        shutil.copytree(sound / "checkpoints" / "6", damaged / "checkpoints" / "6")
    assert sorted(p.name for p in (damaged / "damaged").iterdir()) == ["6", "6-2", "6-3"]


# --- What the command does ----------------------------------------------------------------------------


def check_continued(damaged: Path, resumed_from_4: Path) -> None:
    assert th.losses(damaged) == th.losses(resumed_from_4)
    th.assert_same_checkpoint(damaged, resumed_from_4, 8)
    assert th.checkpoint_steps(damaged) == [4, 6, 8]  # the keep policy does not count what lies aside
    assert [p.name for p in (damaged / "damaged").iterdir()] == ["6"]


@pytest.mark.parametrize("checksums", [True, False], ids=["checksums", "older"])
def test_the_same_command_continues_from_the_one_before(checksums, damaged, corpus, cache, resumed_from_4):
    if not checksums:
        forget_checksums(damaged)
    file = max(files_of(damaged / "checkpoints" / "6", "opt_state"), key=lambda f: f.stat().st_size)
    file.write_bytes(file.read_bytes()[:100])
    done = th.run_command(cache, *th.overrides(damaged, corpus, steps=8, **OPTIONS))
    assert done.returncode == 0 and th.resumed_from(done.stdout) == 4
    check_set_aside(damaged, done.stderr, 6, 4, "opt_state")
    check_continued(damaged, resumed_from_4)


@pytest.mark.parametrize("kind", DAMAGES)
def test_each_kind_of_damage_continues_bit_for_bit(kind, damaged, corpus, cache, resumed_from_4):
    file = random.Random(kind).choice(files_of(damaged / "checkpoints" / "6"))
    DAMAGES[kind](file)
    done = th.run_command(cache, *th.overrides(damaged, corpus, steps=8, **OPTIONS))
    assert done.returncode == 0 and th.resumed_from(done.stdout) == 4
    check_continued(damaged, resumed_from_4)


def test_a_finished_run_whose_last_checkpoint_is_damaged_is_finished_again(damaged, corpus, cache, sound):
    flip(files_of(damaged / "checkpoints" / "6", "params")[-1])
    done = th.run_command(cache, *th.overrides(damaged, corpus, steps=6, **OPTIONS))
    assert done.returncode == 0 and th.resumed_from(done.stdout) == 4
    check_set_aside(damaged, done.stderr, 6, 4, "params")
    th.assert_same_checkpoint(damaged, sound, 6)
    assert th.losses(damaged) == th.losses(sound)


@pytest.mark.parametrize("checksums", [True, False], ids=["checksums", "older"])
def test_two_processes_agree_on_the_one_before(checksums, tmp_path, corpus, cache):
    arguments = th.overrides(tmp_path / "run", corpus, steps=4, mesh__data=2, **OPTIONS)
    ph.succeed(ph.start(cache, arguments))
    sound = Path(shutil.copytree(tmp_path / "run", tmp_path / "sound"))
    assert (sound / "checkpoints" / "4" / CHECKSUMS).exists()
    if not checksums:
        forget_checksums(tmp_path / "run")
    DAMAGES["cut"](max(files_of(tmp_path / "run" / "checkpoints" / "4"), key=lambda f: f.stat().st_size))
    ended = ph.finish(ph.start(cache, arguments))
    assert [e.returncode for e in ended] == [0, 0], ended
    assert th.resumed_from(ended[0].stdout) == 2 and not ended[1].stderr
    check_set_aside(tmp_path / "run", ended[0].stderr, 4, 2, "")
    th.assert_same_checkpoint(tmp_path / "run", sound, 4)


# --- Reading a model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("checksums", [True, False], ids=["checksums", "older"])
def test_a_damaged_model_names_the_file_and_a_step_that_works(checksums, damaged, tmp_path):
    if not checksums:
        forget_checksums(damaged)
    for step in (4, 6):
        DAMAGES["cut"](max(files_of(damaged / "checkpoints" / str(step), "params"), key=lambda f: f.stat().st_size))
    before = th.listing(damaged)
    with pytest.raises(SystemExit) as ended:
        to_hf.main(["--model", str(damaged), "--out", str(tmp_path / "hf")])
    message = str(ended.value)
    assert (
        message.startswith(f"error: checkpoint {damaged / 'checkpoints' / '6'} is damaged (") and "params/" in message
    )
    assert message.endswith(": take that of step 2 with --step 2") and "\n" not in message
    assert not (tmp_path / "hf").exists()
    to_hf.main(["--model", str(damaged), "--out", str(tmp_path / "hf"), "--step", "2"])
    assert load_model(tmp_path / "hf").params["embed"].tobytes() == load_model(damaged, 2).params["embed"].tobytes()
    assert th.listing(damaged) == before
    with pytest.raises(UserError, match=r"checkpoints/4 is damaged .*--step 2"):
        load_model(damaged, 4)
    shutil.rmtree(damaged / "checkpoints" / "2")
    with pytest.raises(UserError, match=r"checkpoints/6 is damaged \(.*\): no other can be read"):
        load_model(damaged)


def test_a_damaged_init_from_says_how_to_take_an_older_step(damaged, corpus, tmp_path, monkeypatch, cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    DAMAGES["flipped"](max(files_of(damaged / "checkpoints" / "6", "params"), key=lambda f: f.stat().st_size))
    chats = th.write_chats(tmp_path / "chats.jsonl")

    def train(init_from):
        options = {"data__max_seq_len": 128, "steps": 1, "save_every": 0}
        th.run_here(*th.overrides(tmp_path / "sft", chats, "sft_512", init_from=init_from, **options))

    with pytest.raises(UserError) as error:
        train(damaged)
    advice = f"python -m convert.to_hf --model {damaged} --step 4 --out DIR"
    assert f"{advice} makes that of step 4 a directory for init_from" in str(error.value)
    assert not (tmp_path / "sft").exists()
    to_hf.main(advice.replace("DIR", str(tmp_path / "hf")).split()[3:])
    train(tmp_path / "hf")
    assert load_model(tmp_path / "sft").step == 1
