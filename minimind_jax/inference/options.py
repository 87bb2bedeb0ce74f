"""What a request may ask of generation: one bundle for the batch functions, the engine, the chat and the server."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from minimind_jax.errors import UserError

MAX_TOP_LOGPROBS = 20  # OpenAI's limit
MAX_STOPS = 16
MAX_BIASES = 1024


@dataclass(frozen=True)
class Options:
    """How a sequence is continued.

    Logits change in vLLM's order: bias, repetition, frequency and presence penalty, then in transformers' order:
    temperature, top-k, top-p, min-p.

    Raises UserError for a value that makes no sense.
    """

    max_new_tokens: int = 512  # 0 only with score_prompt
    temperature: float = 0.0  # 0 = greedy, and then top_k, top_p, min_p and seed have no say
    top_k: int = 0  # the k most likely tokens; 0 = all
    top_p: float = 1.0  # the fewest tokens that together are as likely; 1 = all
    min_p: float = 0.0  # tokens at least as likely as this share of the most likely one; 0 = all
    repetition_penalty: float = 1.0  # Keskar et al. 2019, arXiv:1909.05858, on prompt and answer; 1 = off
    frequency_penalty: float = 0.0  # taken off a token's logit for each time it stands in the answer, as OpenAI does
    presence_penalty: float = 0.0  # taken off once if it stands there
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, what is added to its logit, -100 to 100)
    seed: int = 0
    stop: tuple[str, ...] = ()  # texts that end the answer and are not part of it
    stop_token_ids: tuple[int, ...] = ()  # tokens that do, besides the end token
    ignore_eos: bool = False  # runs to max_new_tokens: for measuring
    top_logprobs: int = -1  # alternatives reported with each token's log-probability; -1 = report none at all
    score_prompt: bool = False  # reports the prompt's tokens as well
    grammar: str = ""  # llguidance's, which the answer follows to its end; "" = free

    def __post_init__(self) -> None:
        _integer("max_new_tokens", self.max_new_tokens, 0 if self.score_prompt else 1, 2**31 - 1)
        _number("temperature", self.temperature, 0.0, math.inf, "0 = greedy")
        _integer("top_k", self.top_k, 0, 2**31 - 1, "0 = all tokens")
        _number("top_p", self.top_p, 0.0, 1.0, "1 = all tokens", above=True)
        _number("min_p", self.min_p, 0.0, 1.0, "0 = all tokens")
        _number("repetition_penalty", self.repetition_penalty, 0.0, math.inf, "1 = off", above=True)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0, "0 = off")
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0, "0 = off")
        if len(self.logit_bias) > MAX_BIASES:
            raise UserError(f"logit_bias={len(self.logit_bias)} tokens, the limit is {MAX_BIASES}")
        for token, bias in self.logit_bias:
            _integer("logit_bias", token, 0, 2**31 - 1, "a token's id")
            _number("logit_bias", bias, -100.0, 100.0, "what is added to the token's logit")
        _integer("seed", self.seed, 0, 2**32 - 1)
        _integer("top_logprobs", self.top_logprobs, -1, MAX_TOP_LOGPROBS)
        if not all(isinstance(text, str) and text for text in self.stop) or len(self.stop) > MAX_STOPS:
            raise UserError(f"stop={list(self.stop)!r} must be at most {MAX_STOPS} texts that are not empty")
        for token in self.stop_token_ids:
            _integer("stop_token_ids", token, 0, 2**31 - 1)
        if self.grammar and self.ignore_eos:
            raise UserError("ignore_eos=True goes on where a grammar ends: leave one of them away")


def _integer(name: str, value: Any, low: int, high: int, meaning: str = "") -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or not low <= int(value) <= high:
        limits = f"of at least {low}" if high >= 2**31 - 1 and name != "seed" else f"from {low} to {high}"
        raise UserError(f"{name}={value!r} must be an integer {limits}" + (f" ({meaning})" if meaning else ""))


def _number(name: str, value: Any, low: float, high: float, meaning: str, above: bool = False) -> None:
    fits = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not low <= float(value) <= high or (above and value == low):
        limits = f"{'above' if above else 'of at least'} {low:g}" + (
            f" and at most {high:g}" if high < math.inf else ""
        )
        raise UserError(f"{name}={value!r} must be a number {limits} ({meaning})")
