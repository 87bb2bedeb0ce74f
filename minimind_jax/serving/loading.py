"""From a directory to a running engine, for the server and the terminal chat alike."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import jax
import jax.numpy as jnp

from minimind_jax.errors import UserError
from minimind_jax.inference.engine import Engine
from minimind_jax.long_context import add_yarn_options, apply_yarn_options, beyond_warning
from minimind_jax.serving.models import ModelSpec, ServedModel, model_names
from minimind_jax.workdir import load_model


def add_model_arguments(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Args:
    several: --model may be given any number of times, each with a step after an @.
    """
    what = "workdir or Hugging Face directory"
    if several:
        what += "; may be repeated; WORKDIR@STEP = that checkpoint"
        parser.add_argument("--model", action="append", default=[], help=what)
    else:
        parser.add_argument("--model", required=True, help=what)
    parser.add_argument("--step", type=int, help="checkpoint of the workdir; the last one if left out")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of weights, activations and cache (default: float32 on the CPU, bfloat16 elsewhere)",
    )
    parser.add_argument(
        "--max-context", type=int, default=0, help="tokens of prompt and answer together (default: the model's limit)"
    )
    add_yarn_options(parser)


@contextmanager
def open_engine(
    args: argparse.Namespace, log: Callable[[str], None], *, max_batch: int = 1, max_queue: int = 1
) -> Iterator[Engine]:
    """Loads the one model that `add_model_arguments` names, and says what it is. Raises as `open_models`."""
    spec = ModelSpec(args.model, args.step)
    with _open(spec, ("",), args, log, max_batch, max_queue) as model:
        yield model.engine


@contextmanager
def open_models(
    args: argparse.Namespace, names: list[str], log: Callable[[str], None], *, max_batch: int, max_queue: int
) -> Iterator[list[ServedModel]]:
    """Loads all models that `add_model_arguments` names, one after the other, and says what they are.

    Args:
      names: all of a single model, or one for each; [] = the directories'.
      max_batch, max_queue: of each.

    Raises:
      UserError: there is no such model, a size makes no sense, or names that `model_names` refuses.
    """
    specs = [ModelSpec.parse(text) for text in args.model]
    names_of = model_names(specs, names)
    if args.step is not None:
        if len(specs) != 1 or specs[0].step is not None:
            raise UserError(f"--step={args.step} is for one --model: with several write WORKDIR@STEP")
        specs = [ModelSpec(specs[0].path, args.step)]
    several = len(specs) > 1
    with ExitStack() as stack:
        yield [
            stack.enter_context(_open(spec, own, args, log, max_batch, max_queue, f"{own[0]}: " if several else ""))
            for spec, own in zip(specs, names_of, strict=True)
        ]


@contextmanager
def _open(
    spec: ModelSpec,
    names: tuple[str, ...],
    args: argparse.Namespace,
    log: Callable[[str], None],
    max_batch: int,
    max_queue: int,
    prefix: str = "",
) -> Iterator[ServedModel]:
    """`prefix` tells whose programs are compiled."""
    for flag, value, least in (("context", args.max_context, 0), ("batch", max_batch, 1), ("queue", max_queue, 1)):
        if value < least:
            raise UserError(f"--max-{flag}={value} must be at least {least}")
    model, warning = apply_yarn_options(load_model(spec.path, spec.step), args)
    dtype = args.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    engine = Engine(
        model.config,
        model.params,
        model.tokenizer,
        max_batch=max_batch,
        max_queue=max_queue,
        max_context=args.max_context,
        dtype=jnp.dtype(dtype),
        on_compile=lambda text: log(prefix + text),
    )
    model = dataclasses.replace(model, params={})  # the engine has its own: one copy is enough
    step = f" at step {model.step}" if model.step else ""
    device = jax.devices()[0]
    log(
        f"{spec.path}{step}: {model.n_params / 1e6:.1f}M parameters in {dtype} on {device.device_kind} "
        f"({device.platform}), context {engine.max_context} tokens"
    )
    keep = "--max-context keeps conversations shorter"
    for text in (warning, beyond_warning(model, engine.max_context, "conversations", keep)):
        if text:
            log(f"warning: {text}")
    with engine:
        yield ServedModel(engine, names, model.step, model.n_params)
