"""Answers that follow a grammar: which tokens may come next. By llguidance, on the host."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import llguidance
import numpy as np

from minimind_jax.errors import UserError
from minimind_jax.tokenizer import Tokenizer

_KEPT = 64  # grammars that stay compiled

# Written as the chat templates write it (`tojson`), which is what models have seen. Free white space would let a
# weak model write blanks without end.
_LIKE_TEMPLATES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammars:
    """Grammars over a tokenizer's vocabulary, in llguidance's Lark dialect; rules are made with `mark` and `json_rule`.

    Args:
      vocab_size: the model's logits; may exceed the tokenizer's entries.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, max(vocab_size, tokenizer.vocab_size)
        self._limits = llguidance.LLParserLimits(verbose_errors=False)
        self._compiled = functools.lru_cache(_KEPT)(self._compile)

    def mark(self, text: str) -> str:
        """A term for a mark such as `</think>`: the one token that it is, else its text."""
        ids = self._tokenizer.encode_rendered(text)
        return f"<[{ids[0]}]>" if len(ids) == 1 and self._vocabulary.is_special_token(ids[0]) else json.dumps(text)

    def json_rule(self, schema: Mapping[str, Any]) -> str:
        """The right side of a rule for JSON that a schema describes.

        Raises:
          UserError: the library does not know a keyword, or nothing fits the schema.
        """
        rule = f"%json {json.dumps({**schema, 'x-guidance': _LIKE_TEMPLATES})}"
        self.constraint(f"start: {rule}")
        return rule

    def constraint(self, grammar: str) -> Constraint:
        """For one sequence that follows `grammar` from its first token on.

        Raises:
          UserError: it is no grammar, or nothing follows it.
        """
        return Constraint(self._compiled(grammar).deep_copy())

    @functools.cached_property
    def _vocabulary(self) -> llguidance.LLTokenizer:
        return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer)))

    def _compile(self, grammar: str) -> llguidance.LLMatcher:
        compiled = llguidance.LLMatcher.grammar_from_lark(grammar)
        matcher = llguidance.LLMatcher(self._vocabulary, compiled, log_level=0, limits=self._limits)
        first = matcher.deep_copy()
        probe = Constraint(first)
        probe.fill(self.free_masks(1)[0])
        if forced := first.compute_ff_tokens():  # a schema that must contain itself is found out by its first step
            probe.push(forced[0])
        if probe.error:
            raise UserError(probe.error)
        return matcher

    def free_masks(self, n_rows: int) -> np.ndarray:
        """int32 (n_rows, words): one bit a token, all of them set, for `Constraint.fill`."""
        return np.full((n_rows, -(-self._vocab_size // 32)), -1, np.int32)


class _Vocabulary:
    """The tokenizer as llguidance's `TokenizerWrapper` takes it.

    Its own reading of tokenizer.json would make control tokens of text that only looks like them.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.eos_id
        tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        if not any(tokens):
            raise UserError(f"answers of a given form need a byte-level tokenizer, which {tokenizer.path} is not")
        self.tokens = [data or b"" for data in tokens]
        added = json.loads((tokenizer.path / "tokenizer.json").read_text("utf-8")).get("added_tokens") or []
        # Those that plain text never becomes.
        self.special_token_ids = [t["id"] for t in added if tokenizer.encode(t["content"]) != [t["id"]]]

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


class Constraint:
    """Where one sequence stands in its grammar; made by `Grammars`."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher
        self._is_stuck = False

    def fill(self, mask: np.ndarray) -> None:
        """Sets the bits of the tokens that may come next in `mask` (words,), and no others."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.int32)  # of whole words, perhaps one more
        mask[:] = 0
        mask[: len(bits)] = bits[: len(mask)]
        self._is_stuck = not mask.any()

    def push(self, token: int) -> None:
        """Takes the token that was chosen."""
        self._matcher.consume_token(token)

    @property
    def is_complete(self) -> bool:
        """Nothing but the end can follow."""
        return self._matcher.is_stopped() and not self.error

    @property
    def error(self) -> str:
        """Why the sequence cannot go on; "" = it can."""
        reason = " ".join(self._matcher.get_error().split())
        return reason or ("no token can follow" if self._is_stuck else "")
