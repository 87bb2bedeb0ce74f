"""Frozen dataclasses from mappings, and checks of their values: every error names the key and says how to mend it."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from minimind_jax.errors import UserError


def build(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    """Fills dataclass `cls` from a mapping; unset (None) keys keep the defaults."""
    hints = get_type_hints(cls)
    kwargs = {}
    for key, value in dict(values).items():
        name = f"{prefix}.{key}" if prefix else key
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=1)
            raise UserError(f"unknown config key {name}" + (f": did you mean {close[0]}?" if close else ""))
        if value is not None:
            kwargs[key] = _convert(hints[key], value, name)
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.name not in kwargs and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"config key {prefix + '.' if prefix else ''}{missing[0]} is not set")
    return cls(**kwargs)


def section_class(hint: Any) -> type | None:
    """The dataclass of a config section, whether it is optional or not; None for a plain value."""
    candidates = [c for c in get_args(hint) or (hint,) if dataclasses.is_dataclass(c)]
    return candidates[0] if candidates else None  # type: ignore[return-value]


def _convert(hint: Any, value: Any, name: str) -> Any:
    section = section_class(hint)
    if section:
        if not hasattr(value, "items"):
            raise UserError(f"{name} must be a section of keys, not {value!r}")
        return build(section, value, name)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint == tuple[str, ...]:
        if not isinstance(value, (tuple, list)) or not all(isinstance(v, str) for v in value):
            raise UserError(f"{name} must be a list of strings, not {value!r}")
        return tuple(value)
    if type(value) is not hint:
        raise UserError(f"{name}={value!r} must be of type {hint.__name__}, not {type(value).__name__}")
    if hint is float and not math.isfinite(value):
        raise UserError(f"{name}={value} is not a finite number")
    return value


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name}={value!r} is not one of {', '.join(allowed)}")


def at_least(name: str, value: float, low: float) -> None:
    if not value >= low:
        raise UserError(f"{name}={value} must be at least {low}")


def positive(name: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{name}={value} must be greater than 0")


def between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{name}={value} must lie between {low} and {high}")
