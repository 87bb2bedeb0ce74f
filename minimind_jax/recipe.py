"""Recipes: what `configs/*.py` are made of, and reading one from the command line.

A recipe is a file with `get_config(arg)`; `--config configs/pretrain.py:tiny,smoke` passes
"tiny,smoke", and `--config.model.dim=256` overrides a key. The keys and their defaults are those of
`minimind_jax.config.Config`, so they are written down once.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from minimind_jax import config as typed
from minimind_jax.config_build import section_class
from minimind_jax.errors import UserError

# Sizes of the published MiniMind models, the 8-GPU recipe's, and one for CPU work.
MODEL_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(dim=256, n_layers=4, n_heads=4, n_kv_heads=2),
    "minimind2_small": dict(dim=512, n_layers=8, n_heads=8, n_kv_heads=2),
    "minimind2": dict(dim=768, n_layers=16, n_heads=8, n_kv_heads=2),
    "minimind3": dict(dim=768, n_layers=8, n_heads=8, n_kv_heads=4, ffn_dim=2432, qk_norm=True),
    "minimind_1024": dict(dim=1024, n_layers=16, n_heads=8, n_kv_heads=2),
}

_LOAD_ERRORS = (AttributeError, KeyError, TypeError, ValueError, flags.Error)


def base_recipe(stage: str) -> ConfigDict:
    """All keys of a stage's recipe with their defaults; keys without one are placeholders that a recipe fills."""
    recipe = _section(typed.Config)
    recipe.stage = stage
    section = section_class(typing.get_type_hints(typed.Config).get(stage))
    if section:
        recipe[stage] = _section(section)
    return recipe


Shrink = Callable[[ConfigDict], None]


def apply_argument(recipe: ConfigDict, arg: str, smoke: Shrink, tiny: Shrink | None = None) -> ConfigDict:
    """Applies `--config file.py:ARG`: a model preset, `smoke`, or both separated by a comma.

    Args:
      smoke: makes a run of a minute.
      tiny: what goes with the model of that name, apart from its sizes.

    Raises UserError for any other word.
    """
    words = [w.strip() for w in arg.split(",") if w.strip()]
    for word in words:
        if word in MODEL_PRESETS:
            # Back to "derived" first: a preset that leaves these out means its own ratio.
            recipe.model.update(dict(head_dim=0, ffn_dim=0, qk_norm=False) | MODEL_PRESETS[word])
            if word == "tiny" and tiny:
                tiny(recipe)
        elif word != "smoke":
            known = ", ".join([*MODEL_PRESETS, "smoke"])
            raise UserError(f"recipe argument {word!r} is not one of {known}")
    if "smoke" in words:  # last, so that it shrinks whatever the preset chose
        smoke(recipe)
    return recipe


def load_recipe(argv: Sequence[str]) -> tuple[ConfigDict, set[str]]:
    """Reads `--config FILE[:ARG]` and its overrides from a command line (argv[0] is the program).

    Returns: the recipe with overrides applied, and the dotted keys that were overridden.

    Raises:
      UserError: no --config, no such file, unknown key (with a suggestion), value of a wrong type,
        or any other argument.
    """
    values = flags.FlagValues()
    path = _recipe_path(argv)
    try:
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=list(argv), lock_config=True)
        rest = values(list(argv))
        recipe = values.config
        recipe.keys()  # a broken recipe file raises here, with its own error
    except flags.UnrecognizedFlagError as e:
        raise UserError(f"unknown flag --{e.flagname}: recipe keys are overridden as --config.KEY=VALUE") from None
    except _LOAD_ERRORS as e:
        raise UserError(_explain(e, argv, path)) from None
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}: write overrides as --config.KEY=VALUE")
    return recipe, set(values["config"].override_values)  # type: ignore[attr-defined]


def _recipe_path(argv: Sequence[str]) -> Path:
    for i, arg in enumerate(argv):
        flag, _, value = arg.partition("=")
        if flag in ("--config", "-config"):
            value = value or (argv[i + 1] if i + 1 < len(argv) else "")
            path = Path(value.split(":")[0])
            if not path.is_file():
                raise UserError(f"recipe {path} does not exist: give one of configs/*.py")
            return path
    raise UserError("no recipe: say --config configs/pretrain.py (or another file of configs/)")


def _explain(error: Exception, argv: Sequence[str], path: Path) -> str:
    keys = [key for stage in typed.STAGES for key in _flatten(base_recipe(stage))]
    for arg in argv:
        name = arg.partition("=")[0].removeprefix("--config.")
        if arg.startswith("--config.") and isinstance(error, (AttributeError, KeyError)) and name not in keys:
            close = difflib.get_close_matches(name, keys, n=1)
            hint = f"did you mean {close[0]}?" if close else "the keys are listed in docs/config.md"
            return f"unknown config key {name}: {hint}"
    return f"recipe {path}: {' '.join(str(error).split())}"


def _flatten(recipe: Mapping[str, Any], prefix: str = "") -> list[str]:
    out = []
    for key, value in recipe.items():
        out += _flatten(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [prefix + key]
    return out


def _section(cls: type) -> ConfigDict:
    section = ConfigDict()
    for name, hint in typing.get_type_hints(cls).items():
        if name in typed.STAGES:
            continue  # a stage's own section stands in its own recipes only
        if hasattr(hint, "__dataclass_fields__"):
            section[name] = _section(hint)
        elif name in vars(cls):
            section[name] = vars(cls)[name]
        else:
            section[name] = config_dict.placeholder(hint)
    return section
