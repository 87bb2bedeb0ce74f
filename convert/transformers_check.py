"""Has transformers, where it and PyTorch are installed, load an export and compares it with our own model."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.model import Params, hidden_states, logits, xla_attention
from minimind_jax.tokenizer import Tokenizer

# Of the largest logit, both sides in float32: what two orders of summation differ by. Wrong heads, angles or
# epsilons make thousands of times as much.
TOLERANCE = 1e-5

_N_TOKENS = 64
_TEXT = "Snow in May? 五月飞雪，竟有其事 🙂\n\t12345  don't"
_CHILD = Path(__file__).with_name("transformers_child.py")


def unavailable() -> str:
    """Why the check cannot be made here; "" if it can."""
    absent = [name for name in ("transformers", "torch") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else ""


def check(directory: Path, config: ModelConfig, params: Params, tokenizer: Tokenizer) -> str:
    """Compares transformers' logits and token ids on a model directory with ours.

    Args:
      params: float32, what the directory's weights are read as.

    Returns:
      What was found, for the user: the version and the difference, or why nothing could be compared.

    Raises:
      UserError: transformers cannot load the directory, or computes something else.
    """
    if reason := unavailable():
        return f"not checked with transformers: {reason}"
    tokens = np.arange(min(_N_TOKENS, config.max_seq_len)) * 7919 % config.vocab_size
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "logits.npy"
        marked, (messages, rendered) = "x".join(sorted(tokenizer.added_tokens)), _chat(tokenizer)
        request = {"tokens": tokens.tolist(), "text": _TEXT, "marked": marked, "messages": messages}
        found = _ask(request | {"directory": str(directory), "logits": str(file)})
        if "unusable" in found:
            return f"not checked with transformers, which cannot be imported: {found['unusable']}"
        theirs = np.load(file)
    name = f"transformers {found['version']}"
    if found["problem"]:
        raise UserError(f"{name} does not load the export as it is ({found['problem']}): nothing was kept")
    if found["token_ids"] != tokenizer.encode(_TEXT):
        raise UserError(f"{name} makes other tokens of {_TEXT!r} with the exported tokenizer: nothing was kept")
    if found["marked_ids"] != tokenizer.encode_rendered(marked):
        raise UserError(f"{name} makes other tokens of the exported tokenizer's added ones: nothing was kept")
    if found["rendered"] != rendered:
        raise UserError(f"{name} renders {messages} otherwise with the exported chat template: nothing was kept")
    if found["eos_id"] != tokenizer.eos_id:
        raise UserError(
            f"{name} ends answers with token {found['eos_id']}, the tokenizer with {tokenizer.eos_id}: nothing was kept"
        )
    difference = _relative_difference(own_logits(config, params, tokens), theirs)
    if not difference <= TOLERANCE:  # NaN too
        raise UserError(
            f"{name} computes other logits from the export: they differ by {difference:.1e} of the largest, more than "
            f"{TOLERANCE:g}: nothing was kept"
        )
    return f"{name} computes the same logits (within {difference:.1e} of the largest)"


def _chat(tokenizer: Tokenizer) -> tuple[list[dict[str, str]], str]:
    """A conversation and its text by the chat template; none where the template has none for it."""
    messages = [{"role": "user", "content": "Hi 你好"}, {"role": "assistant", "content": "Ho"}]
    try:
        return messages, tokenizer.apply_chat_template(messages)
    except UserError:
        return [], ""


def own_logits(config: ModelConfig, params: Params, tokens: np.ndarray) -> np.ndarray:
    """Our float32 logits (T, V) of one row of `tokens` (T,)."""
    row, positions = jnp.asarray(tokens)[None], jnp.arange(len(tokens))[None]
    with jax.default_matmul_precision("highest"):  # GPUs would take TF32
        hidden = hidden_states(config, params, row, positions, jnp.ones_like(positions), attention=xla_attention)
        return np.asarray(logits(params, hidden)[0])


def _relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


def _ask(request: dict) -> dict:
    """Runs the child: its torch meets neither this process's JAX nor a GPU, and no hub is asked."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    utf8 = {"PYTHONIOENCODING": "utf-8"}  # whatever the terminal has
    done = subprocess.run(
        [sys.executable, "-P", str(_CHILD)],  # -P: convert/ is no place to import from
        input=json.dumps(request),
        env={**os.environ, **offline, **utf8},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"transformers cannot load the export ({last}): nothing was kept")
    return json.loads(done.stdout.splitlines()[-1])
