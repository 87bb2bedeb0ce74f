"""Which command may continue a workdir, and who may be in it."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from step_helpers import MODEL, make_config

from minimind_jax.config import DistributedConfig, MeshConfig, PrecisionConfig, RopeScaling
from minimind_jax.errors import UserError
from minimind_jax.training.identity import check_same_run, identity, locked
from minimind_jax.workdir import Workdir

REPOSITORY = Path(__file__).parents[2]
BASE = make_config(batch_size=16)


def change(config: Any, key: str, value: Any) -> Any:
    """The config with a dotted key replaced."""
    section, _, rest = key.partition(".")
    return dataclasses.replace(config, **{section: change(getattr(config, section), rest, value) if rest else value})


def identity_of(config: Any, data: str = "data", tokenizer: str = "tokenizer") -> dict[str, Any]:
    return identity(config, data, tokenizer)


@pytest.fixture
def run(tmp_path: Path) -> Workdir:
    """A workdir that BASE has begun."""
    workdir = Workdir(tmp_path)
    workdir.write_config(BASE.to_dict() | {"total_steps": 10, "identity": identity_of(BASE)})
    workdir.metrics.write_text('{"step": 1, "loss": 1.0}\n')
    return workdir


IDENTITY_KEYS = {
    "seed": 1,
    "batch_size": 32,
    "init_from": "elsewhere",
    "model.dim": 32,
    "model.n_layers": 3,
    "model.n_heads": 4,
    "model.n_kv_heads": 2,
    "model.head_dim": 32,
    "model.ffn_dim": 64,
    "model.vocab_size": 128,
    "model.max_seq_len": 128,
    "model.rope_theta": 1e4,
    "model.norm_eps": 1e-6,
    "model.qk_norm": True,
    "model.tie_embeddings": False,
    "data.max_seq_len": 32,
    "data.marks": "text",
    "optim.name": "muon",
    "optim.lr": 1e-3,
    "optim.min_lr_ratio": 0.0,
    "optim.warmup_steps": 3,
    "optim.schedule": "constant",
    "optim.weight_decay": 0.0,
    "optim.b1": 0.8,
    "optim.b2": 0.99,
    "optim.grad_clip": 0.5,
}


@pytest.mark.parametrize(("key", "value"), IDENTITY_KEYS.items())
def test_an_identity_key_blocks_and_is_named(run: Workdir, key: str, value: Any):
    with pytest.raises(UserError) as caught:
        check_same_run(run, identity_of(change(BASE, key, value)))
    message = str(caught.value)
    assert f" {key} was " in message and str(run.path) in message
    assert "set these back" in message and "another --config.workdir" in message and "\n" not in message


def test_the_share_of_the_decay_counts_with_wsd_alone(run: Workdir):
    """Also: a workdir from before this key existed can be continued."""
    assert check_same_run(run, identity_of(change(BASE, "optim.decay_ratio", 0.5))) is not None
    wsd = change(BASE, "optim.schedule", "wsd")
    run.write_config(wsd.to_dict() | {"total_steps": 10, "identity": identity_of(wsd)})
    with pytest.raises(UserError, match=r"optim\.decay_ratio was 0\.2, now 0\.5"):
        check_same_run(run, identity_of(change(wsd, "optim.decay_ratio", 0.5)))


def test_every_model_and_optimiser_key_is_an_identity_key():
    names = {key for key in identity_of(change(BASE, "optim.schedule", "wsd")) if key.startswith(("model.", "optim."))}
    tried = {key for key in IDENTITY_KEYS if key.startswith(("model.", "optim."))}
    scaling = {f"model.rope_scaling.{field.name}" for field in dataclasses.fields(RopeScaling)}
    assert names == tried | scaling | {"optim.decay_ratio"}


def test_rope_scaling_master_precision_data_and_tokenizer_block(run: Workdir):
    scaled = dataclasses.replace(MODEL, rope_scaling=RopeScaling("yarn", 2.0, 32))
    cases = {
        "model.rope_scaling.type": identity_of(change(BASE, "model", scaled)),
        "precision.params": identity_of(change(BASE, "precision", PrecisionConfig(params="bfloat16"))),
        "data.content": identity_of(BASE, data="other"),
        "tokenizer": identity_of(BASE, tokenizer="other"),
        "stage": identity_of(BASE) | {"stage": "sft"},
    }
    for key, wanted in cases.items():
        with pytest.raises(UserError, match=rf"{key} was "):
            check_same_run(run, wanted)


def test_a_run_that_another_version_began_says_how_to_go_on(run: Workdir):
    old = identity_of(BASE, data="as the version before had it")
    del old["data.format"]
    run.write_config(BASE.to_dict() | {"total_steps": 10, "identity": old})
    with pytest.raises(UserError) as caught:
        check_same_run(run, identity_of(BASE))
    message = str(caught.value)
    assert "begun by another version" in message and f"--config.init_from={run.path}" in message
    assert "set these back" not in message and "\n" not in message


def test_all_differences_are_named_at_once(run: Workdir):
    with pytest.raises(UserError, match=r"optim\.lr was 0\.01, now 0\.5; seed was 0, now 7\."):
        check_same_run(run, identity_of(change(change(BASE, "seed", 7), "optim.lr", 0.5)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 20),
        ("epochs", 3.0),
        ("accum_steps", 4),
        ("scan_unroll", 2),
        ("remat", "full"),
        ("attention", "xla"),
        ("deterministic", True),
        ("log_to", ""),
        ("log_every", 5),
        ("eval_every", 5),
        ("save_every", 5),
        ("keep", 9),
        ("sample_prompts", ("a",)),
        ("mesh", MeshConfig(2, 2)),
        ("distributed", DistributedConfig("host:1", 2, 0)),
        ("precision", PrecisionConfig(compute="bfloat16")),
        ("precision", PrecisionConfig(params="float32")),  # what auto means
        ("data.path", "moved/a.jsonl"),
        ("data.num_workers", 3),
        ("data.cache_dir", "elsewhere"),
        ("data.max_bad_share", 0.5),
    ],
)
def test_a_free_key_passes(run: Workdir, key: str, value: Any):
    before = check_same_run(run, identity_of(change(BASE, key, value)))
    assert before is not None and before["total_steps"] == 10


def test_init_from_may_be_written_in_another_way(run: Workdir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    relative, absolute = (identity_of(change(BASE, "init_from", p)) for p in ("base", f"{tmp_path}/x/../base"))
    assert relative == absolute


def test_a_run_that_failed_before_its_first_step_may_start_differently(run: Workdir):
    other = identity_of(dataclasses.replace(BASE, batch_size=32))
    with pytest.raises(UserError, match="batch_size was 16, now 32"):
        check_same_run(run, other)
    run.metrics.unlink()
    assert check_same_run(run, other) is None


def test_a_new_workdir_is_free(tmp_path: Path):
    assert check_same_run(Workdir(tmp_path / "new"), identity_of(BASE)) is None
    (tmp_path / ".lock").touch()
    assert check_same_run(Workdir(tmp_path), identity_of(BASE)) is None


def test_what_is_no_run_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        check_same_run(Workdir(tmp_path), identity_of(BASE))
    with pytest.raises(UserError, match="is a file"):
        check_same_run(Workdir(tmp_path / "thesis.txt"), identity_of(BASE))
    assert (tmp_path / "thesis.txt").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_an_imported_model_is_not_a_run(tmp_path: Path):
    workdir = Workdir(tmp_path)
    workdir.write_config({"stage": "import", "source": "hf", "model": MODEL.to_dict()})
    with pytest.raises(UserError, match=rf"imported model, not a run: .*--config\.init_from={tmp_path}"):
        check_same_run(workdir, identity_of(BASE))


def test_a_damaged_config_is_named(tmp_path: Path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        check_same_run(Workdir(tmp_path), identity_of(BASE))


def test_identity_is_json():
    assert json.loads(json.dumps(identity_of(BASE))) == identity_of(BASE)


HOLD_LOCK = """
import sys
from pathlib import Path
from minimind_jax.training.identity import locked
from minimind_jax.workdir import Workdir
with locked(Workdir(Path(sys.argv[1]))):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_kept_out(tmp_path: Path):
    command = [sys.executable, "-c", HOLD_LOCK, str(tmp_path)]
    other = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=rf"{tmp_path} is in use by another run \(process {other.pid}\)"):
            locked(Workdir(tmp_path)).__enter__()
        other.kill()  # however the process ends, its lock ends with it
        other.wait()
        with locked(Workdir(tmp_path)):
            pass
    finally:
        other.kill()
        other.communicate()


def test_the_lock_is_released_after_an_error(tmp_path: Path):
    with pytest.raises(KeyError), locked(Workdir(tmp_path)):
        raise KeyError
    with open(tmp_path / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_workdir_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").touch()
    workdir = Workdir(tmp_path / "file" / "run")
    assert check_same_run(workdir, identity_of(BASE)) is None
    with pytest.raises(UserError, match=r"file/run cannot be written \(Not a directory\)"):
        locked(workdir).__enter__()
