"""What a run leaves on disk, and reading a model back from it.

    WORKDIR/config.json          the run's typed config; `model` is the architecture, `trained_max_seq_len` the longest
                                 rows of this run and of those before it (null: not known)
            metrics.jsonl        one JSON object a logged step
            samples.jsonl        what the model wrote to each of `sample_prompts`: {"step", "prompt", "text"}
            report.json          {"before": the measures on the held-out data before the first step}
            tensorboard/, ...    files of the trackers that `log_to` names
            checkpoints/STEP/    Orbax: items `params`, `opt_state` (none in an imported model), `meta`; checksums
            damaged/STEP/        checkpoints that could not be read when the run continued from an older one
            tokenizer/           a Hugging Face tokenizer directory

A workdir is self-contained: every command takes it as `--model`, as it takes an exported Hugging
Face directory. Both come out of `load_model` alike.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from minimind_jax import checkpoint_files, hf_format
from minimind_jax.checkpoint_files import DamagedCheckpointError
from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.model import Params, abstract_params, count_params
from minimind_jax.tokenizer import Tokenizer, load_tokenizer

FORMAT_VERSION = 1
TRAINED_KEY = "trained_max_seq_len"  # of config.json


@dataclass(frozen=True)
class Workdir:
    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    def tracker(self, name: str) -> Path:
        """Where the tracker `name` of `log_to` keeps its files."""
        return self.path / name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / str(step)

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    def steps(self) -> list[int]:
        """Steps of all committed checkpoints, ascending. Unfinished saves carry a temporary name."""
        if not self.checkpoints.is_dir():
            return []
        return sorted(int(p.name) for p in self.checkpoints.iterdir() if p.name.isdecimal())

    def set_aside(self, step: int) -> Path:
        """Moves a checkpoint to where nobody takes it for one; returns that place. Raises UserError if it cannot."""
        names = itertools.chain([f"{step}"], (f"{step}-{n}" for n in itertools.count(2)))
        place = next(p for name in names if not (p := self.path / "damaged" / name).exists())
        try:
            place.parent.mkdir(exist_ok=True)
            self.checkpoint(step).rename(place)
        except OSError as e:
            raise UserError(
                f"{self.checkpoint(step)} cannot be moved to {place} ({e.strerror}): make the workdir writable"
            ) from None
        return place

    def read_config(self) -> dict[str, Any]:
        """The content of config.json. Raises UserError if it is missing or damaged."""
        try:
            values = json.loads(self.config.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{self.path} is not a workdir: it has no config.json") from None
        except OSError as e:
            raise UserError(f"{self.config} cannot be read: {e.strerror}") from None
        except (ValueError, RecursionError) as e:
            raise UserError(f"{self.config} is damaged ({e}): restore it, or train into a new workdir") from None
        if (
            not isinstance(values, dict)
            or values.get("format_version") != FORMAT_VERSION
            or not isinstance(values.get("model"), dict)
        ):
            raise UserError(f"{self.config} was not written by this version (format_version {FORMAT_VERSION})")
        return values

    def write_config(self, values: dict[str, Any]) -> None:
        write_atomically(self.config, json.dumps({"format_version": FORMAT_VERSION, **values}, indent=2) + "\n")


@dataclass(frozen=True)
class LoadedModel:
    config: ModelConfig
    params: Params  # nested dict of float32 numpy arrays
    tokenizer: Tokenizer
    step: int  # 0 for a Hugging Face directory
    path: Path

    @property
    def n_params(self) -> int:
        return count_params(self.config)


def write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_metrics(workdir: Workdir) -> list[dict[str, Any]]:
    """All complete lines of metrics.jsonl, [] if there is none. Raises UserError for a damaged line."""
    return read_steps(workdir.metrics)


def read_steps(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a file with one JSON object a line, each with its `step`; [] if there is none.

    Raises UserError for a damaged line.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}") from None
    *complete, _ = content.split(b"\n")  # a killed run may leave half a line at the end
    lines = []
    for number, text in enumerate(complete, 1):
        try:
            line = json.loads(text)
            line["step"] + 0
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UserError(f"{path}:{number} is damaged: delete this line, or mend it") from None
        lines.append(line)
    return lines


def count_parameters(model: Any) -> int | None:
    """Parameters of the architecture that a config.json describes under `model`; None where it is none of ours."""
    try:
        return _count(ModelConfig.from_dict(model))
    except (UserError, TypeError, ValueError, AttributeError):
        return None


_count = functools.lru_cache(count_params)  # it traces the model


def is_workdir(path: Path) -> bool:
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()


def lineage(path: str | Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A workdir with its config, then those that its run began from, as far as they are there.

    Raises UserError where a config.json on the way is damaged.
    """
    path, seen = Path(path), set[Path]()
    while is_workdir(path) and path.resolve() not in seen:
        seen.add(path.resolve())
        config = Workdir(path).read_config()
        yield path, config
        source = config.get("identity", {}).get("init_from")  # an absolute path, whatever the recipe says
        if not source:
            return
        path = Path(source)


def model_config(path: str | Path) -> ModelConfig:
    """The architecture of a workdir or Hugging Face directory, without reading weights."""
    path = _existing(path)
    if is_workdir(path):
        return ModelConfig.from_dict(Workdir(path).read_config()["model"])
    return hf_format.read_config(path)


def tokenizer_directory(path: str | Path) -> Path:
    """Where a workdir or Hugging Face directory keeps its tokenizer."""
    path = _existing(path)
    return Workdir(path).tokenizer if is_workdir(path) else path


def split_step(model: str) -> tuple[str, int | None]:
    """DIR or DIR@STEP, as the user names a checkpoint: the directory, and the step (None: not said)."""
    directory, at, step = model.rpartition("@")
    if at and directory and step.isdecimal() and not Path(model).exists():
        return directory, int(step)
    return model, None


def short_names(paths: Sequence[str]) -> list[str]:
    """For each path as many of its last parts as make it unique: out/a/sft and out/b/sft are a/sft and b/sft."""
    parts = [[part for part in path.split("/") if part not in ("", ".")] or [path] for path in paths]
    names = list(paths)
    for i, own in enumerate(parts):
        for n in range(1, len(own) + 1):
            name = "/".join(own[-n:])
            if sum(other[-n:] == own[-n:] for other in parts) == 1:
                names[i] = name
                break
    return names


def load_model(path: str | Path, step: int | None = None) -> LoadedModel:
    """Reads a workdir's checkpoint (the last one, or `step`) or a Hugging Face directory.

    Raises:
      DamagedCheckpointError: the checkpoint cannot be read; says which one can be.
      UserError: no such directory, nothing in it, no checkpoint of that step, or its tokenizer is unusable or not the
        model's.
    """
    config, params, step = _load(path, step, "take that of step {step} with --step {step}")
    tokenizer = load_tokenizer(str(tokenizer_directory(path)))
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{path}: its tokenizer has {tokenizer.vocab_size} entries but its model's vocab_size is "
            f"{config.vocab_size}: they do not belong together; to train rows for the others, start from it by "
            f"--config.init_from={path} --config.tokenizer_change=resize"
        )
    return LoadedModel(config, params, tokenizer, step, Path(path))


def load_init(path: str | Path) -> tuple[ModelConfig, Params]:
    """Architecture and weights of a run's `init_from`, whatever its tokenizer.

    Raises:
      DamagedCheckpointError: as `load_model`; the way on is another, since `init_from` names no step.
      UserError: no such directory, nothing in it, or no checkpoint of that step.
    """
    export = f"python -m convert.to_hf --model {path} --step {{step}} --out DIR"
    return _load(path, None, f"{export} makes that of step {{step}} a directory for init_from")[:2]


def _load(path: str | Path, step: int | None, other_step: str) -> tuple[ModelConfig, Params, int]:
    path = _existing(path)
    config = model_config(path)
    if is_workdir(path):
        workdir = Workdir(path)
        steps = workdir.steps()
        if not steps:
            raise UserError(f"{path} has no checkpoint yet: its run has not saved one")
        if step is not None and step not in steps:
            raise UserError(f"{path} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
        step = steps[-1] if step is None else step
        try:
            return config, read_params(workdir, step, config), step
        except DamagedCheckpointError as e:
            readable = _another_step(workdir, step)
            advice = "no other can be read" if readable is None else other_step.format(step=readable)
            raise DamagedCheckpointError(f"{e}: {advice}") from None
    if step is not None:
        raise UserError(f"{path} is a Hugging Face directory: it has no steps, leave --step away")
    return config, hf_format.read_params(path, config), 0


def read_params(workdir: Workdir, step: int, config: ModelConfig) -> Params:
    """One checkpoint's parameters as float32 numpy arrays, whatever devices wrote them.

    Raises:
      DamagedCheckpointError: they cannot be read.
      UserError: they are not those of `config`.
    """
    where = workdir.checkpoint(step)
    checkpoint_files.check(where, ["params"])
    expected = abstract_params(config)
    target = jax.tree.map(lambda a: np.zeros((), a.dtype), expected)  # Orbax reads what is stored, whatever the shape
    with ocp.StandardCheckpointer() as checkpointer, checkpoint_files.reading(where):
        params = checkpointer.restore(where.absolute() / "params", target)
    for (path, have), want in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(expected), strict=True):
        if have.shape != want.shape:
            raise UserError(
                f"checkpoint {where} is not of the model that {workdir.config} describes: "
                f"{jax.tree_util.keystr(path)} is {have.shape}, not {want.shape}"
            )
    return params


def save_imported(workdir: Workdir, config: ModelConfig, params: Params, tokenizer: Tokenizer, source: str) -> None:
    """Writes a workdir that holds parameters at step 0 and no optimiser, as `convert.from_hf` makes it."""
    workdir.path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(workdir.tokenizer)
    with ocp.CheckpointManager(workdir.checkpoints.absolute()) as manager:
        items = ocp.args.Composite(params=ocp.args.StandardSave(params), meta=ocp.args.JsonSave({"step": 0}))
        manager.save(0, args=items)
    checkpoint_files.write_checksums(workdir.checkpoint(0))
    workdir.write_config({"stage": "import", "source": source, "model": config.to_dict()})


def _another_step(workdir: Workdir, damaged: int) -> int | None:
    """The newest of the other checkpoints whose parameters can be read."""
    for step in reversed(workdir.steps()):
        with contextlib.suppress(DamagedCheckpointError):
            if step != damaged:
                checkpoint_files.check(workdir.checkpoint(step), ["params"])
                return step
    return None


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a directory: give a workdir or a Hugging Face model directory")
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is neither a workdir nor a Hugging Face model: it has no config.json")
    return path
