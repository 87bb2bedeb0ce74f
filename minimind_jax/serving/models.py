"""The models of one server: their names, and which of them a request means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from minimind_jax.errors import UserError
from minimind_jax.inference.engine import Engine
from minimind_jax.serving.errors import ApiError
from minimind_jax.workdir import short_names, split_step


@dataclass(frozen=True)
class ServedModel:
    """A running engine."""

    engine: Engine
    names: tuple[str, ...]  # that it answers to, each once; the first one also stands in answers to requests without
    step: int = 0  # of its checkpoint, 0 = unknown
    n_params: int = 0

    @property
    def name(self) -> str:
        return self.names[0]


@dataclass(frozen=True)
class ModelSpec:
    """What --model names: a directory, and the step after an @ if there is one."""

    path: str
    step: int | None = None

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        return cls(*split_step(text))

    def __str__(self) -> str:
        return self.path if self.step is None else f"{self.path}@{self.step}"


def model_names(specs: Sequence[ModelSpec], given: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """The names of each model.

    Args:
      given: all names of a single model, or one a model; none = those of the directories, with as much of the path
        as tells them apart.

    Raises:
      UserError: another number of names, a name or a directory twice, an empty name.
    """
    if not all(given):
        raise UserError("--name is empty: give a name, or leave it away for the directory's")
    resolved = [str(replace(spec, path=str(Path(spec.path).resolve()))) for spec in specs]
    directories = [name.lstrip("/") for name in short_names(resolved)]
    if len(specs) == 1:
        return [tuple(dict.fromkeys(given)) or (directories[0],)]
    names = list(given) or directories
    if len(names) != len(specs):
        raise UserError(f"--name gives {len(names)} names to {len(specs)} models: give one a model, in their order")
    for number, name in enumerate(names):
        if name in names[:number]:
            what = f"--name {name}" if given else f"--model {specs[number]}"
            raise UserError(f"{what} is given twice: models need names of their own")
    return [(name,) for name in names]


def find_model(models: Sequence[ServedModel], name: str | None, any_name: bool = False) -> ServedModel:
    """The one of this name; the first one where none is named. Raises ApiError (404) if there is none.

    Args:
      any_name: names that no model has mean the first one.
    """
    found = next((model for model in models if name in model.names), None)
    if found is None and models and (any_name or not name):
        found = models[0]
    if found is None:
        names = " and ".join(repr(name) for model in models for name in model.names)
        has = f"this server has {names}" if names else "this server shows training runs only"
        message = f"there is no model {name[:100]!r} here: {has}" if name else f"there is no model here: {has}"
        raise ApiError(404, message, param="model", code="model_not_found")
    return found
