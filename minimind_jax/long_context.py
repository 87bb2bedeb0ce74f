"""Contexts longer than the rows of training: how long those were, and YaRN for a model that was trained without it.

YaRN stretches a length that was trained (arXiv:2309.00071): an original length that was not leaves
positions as strange to the model as they were.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from minimind_jax.config import ModelConfig, RopeScaling
from minimind_jax.errors import UserError
from minimind_jax.workdir import TRAINED_KEY, LoadedModel, lineage


def trained_length(path: str | Path) -> int | None:
    """The longest rows, in tokens, of all the runs that made a workdir's weights.

    Workdirs of older versions do not record it: it is then read from the workdirs that they began from.

    Returns: None where nothing says: a Hugging Face directory, an imported model, and what began from
      one of these or from a workdir that is gone.
    """
    longest = 0
    for _, config in lineage(path):
        if TRAINED_KEY in config:
            recorded = config[TRAINED_KEY]
            return None if recorded is None else max(longest, recorded)
        if "identity" not in config:  # imported
            return None
        longest = max(longest, config["data"]["max_seq_len"])
        if not config["identity"].get("init_from"):
            return longest
    return None


def untrained_original_warning(model: ModelConfig, trained: int | None) -> str:
    """Where YaRN's original length is longer than the rows of `trained` tokens that there were; else ""."""
    scaling = model.rope_scaling
    if scaling.type != "yarn" or trained is None or scaling.original_max_seq_len <= trained:
        return ""
    return (
        f"rope_scaling.original_max_seq_len={scaling.original_max_seq_len} was never trained, the longest rows were of "
        f"{trained} tokens: YaRN stretches a length that was; set it to {trained}, or train rows of "
        f"{scaling.original_max_seq_len} before"
    )


def beyond_warning(model: LoadedModel, longest: int, what_for: str, advice: str) -> str:
    """Where `longest` tokens are more than was trained and YaRN, if any, reaches; "" where not, or nobody knows.

    Args:
      what_for: begins the sentence, names what is so long. advice: ends it.
    """
    scaling = model.config.rope_scaling
    trained = trained_length(model.path)
    if scaling.type == "yarn":
        reach, what = int(scaling.factor * scaling.original_max_seq_len), "tokens that its YaRN reaches"
    else:
        reach, what = trained or longest, "tokens of the longest rows that it was trained on"
    reach = max(reach, trained or 0)
    if longest <= reach:
        return ""
    return (
        f"{what_for} of up to {longest:,} tokens are longer than the {reach:,} {what}: {advice}, --yarn-factor "
        "stretches the context"
    )


def with_yarn(model: LoadedModel, factor: float, original: int | None = None) -> LoadedModel:
    """The model with YaRN of `factor` x `original` positions; its weights stay as they are.

    Args:
      original: length in tokens that the weights were trained at; None = `trained_length`.

    Raises:
      UserError: the model has YaRN, nothing says the original length, or the factor is not above 1.
    """
    have = model.config.rope_scaling
    if have.type != "none":
        raise UserError(
            f"{model.path} has YaRN already, factor {have.factor:g} of {have.original_max_seq_len} tokens: "
            "leave --yarn-factor away"
        )
    if not 1 < factor < float("inf"):
        raise UserError(f"--yarn-factor {factor:g} must be above 1")
    original = trained_length(model.path) if original is None else original
    if original is None:
        raise UserError(f"{model.path} does not say which length it was trained at: add --yarn-original TOKENS")
    if original < 1:
        raise UserError(f"--yarn-original {original} must be at least 1")
    scaling = RopeScaling("yarn", factor, original)
    # The limit is the stretched length: engines that take the ratio of both for the factor read the same model.
    config = dataclasses.replace(model.config, rope_scaling=scaling, max_seq_len=int(factor * original))
    return dataclasses.replace(model, config=config)


def add_yarn_options(parser: argparse.ArgumentParser) -> None:
    """`--yarn-factor` and `--yarn-original`, for commands that take `--model`; see `apply_yarn_options`."""
    parser.add_argument(
        "--yarn-factor",
        type=float,
        metavar="F",
        help="stretch the context by YaRN, without training: the limit becomes F times the trained length",
    )
    parser.add_argument(
        "--yarn-original",
        type=int,
        metavar="TOKENS",
        help="the trained length, with --yarn-factor; the workdir's longest rows if left out",
    )


def apply_yarn_options(model: LoadedModel, args: argparse.Namespace) -> tuple[LoadedModel, str]:
    """The model as the options want it, and a warning, "" where there is nothing to warn of.

    Raises what `with_yarn` raises, and UserError for --yarn-original alone.
    """
    if args.yarn_factor is not None:
        model = with_yarn(model, args.yarn_factor, args.yarn_original)
    elif args.yarn_original is not None:
        raise UserError("--yarn-original belongs to --yarn-factor: add that, or leave it away")
    return model, untrained_original_warning(model.config, trained_length(model.path))
