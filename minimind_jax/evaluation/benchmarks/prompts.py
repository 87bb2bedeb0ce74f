"""Prompts and choices as tokens, as lm-eval (0.4.13, api/task.py and api/model.py) cuts them.

As plain text a question is bos, the description, each example as "prompt answer" with a blank line after it, then the
prompt; a choice follows with a space before it. Through the chat template the description is the system message,
examples are turns, and a choice follows the generation prompt as it is. In both, text of prompt and choice is encoded
as one, the prompt's tokens are those of the prompt alone, and white space at the prompt's end belongs to the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minimind_jax.errors import UserError
from minimind_jax.evaluation.benchmarks.item import ChoiceItem
from minimind_jax.evaluation.likelihood import ChoiceTokens
from minimind_jax.tokenizer import Tokenizer

_AT_ONCE = 256  # questions whose texts are encoded together


@dataclass(frozen=True)
class Prompted:
    """A question with what precedes it."""

    item: ChoiceItem
    description: str  # "" or a paragraph with its blank line
    examples: Sequence[ChoiceItem]

    def plain(self) -> tuple[str, list[str]]:
        """(context, continuations)"""
        solved = (f"{example.prompt} {example.choices[example.gold]}\n\n" for example in self.examples)
        return self.description + "".join(solved) + self.item.prompt, [f" {choice}" for choice in self.item.choices]

    def chat(self, tokenizer: Tokenizer) -> tuple[str, list[str]]:
        """(context, continuations), rendered without thinking. Raises UserError as `Tokenizer.apply_chat_template`."""
        messages = [{"role": "system", "content": self.description}] if self.description else []
        for example in self.examples:
            messages.append({"role": "user", "content": example.prompt})
            messages.append({"role": "assistant", "content": example.choices[example.gold]})
        messages.append({"role": "user", "content": self.item.prompt})
        context = tokenizer.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=False)
        return context, [tokenizer.neutralizer.text(choice) for choice in self.item.choices]


def encode(tokenizer: Tokenizer, questions: Sequence[Prompted], chat: bool) -> list[ChoiceTokens]:
    """The tokens of each question.

    Raises:
      UserError: no chat template, or a choice that leaves no token of its own.
    """
    out = []
    for start in range(0, len(questions), _AT_ONCE):
        some = questions[start : start + _AT_ONCE]
        texts = [one.chat(tokenizer) if chat else one.plain() for one in some]
        encoded = _encode_pairs(_encode_chat(tokenizer) if chat else _encode_plain(tokenizer), texts)
        for one, tokens in zip(some, encoded, strict=True):
            if not all(tokens.continuations):
                raise UserError(
                    f"question {one.item.id}: the tokenizer joins a choice with the end of the prompt, so it has no "
                    "token of its own to be scored"
                )
        out += encoded
    return out


Encode = Callable[[list[str]], list[list[int]]]


def _encode_plain(tokenizer: Tokenizer) -> Encode:
    return lambda texts: [[tokenizer.bos_id, *ids] for ids in tokenizer.encode_batch(texts)]


def _encode_chat(tokenizer: Tokenizer) -> Encode:
    return lambda texts: [ids for ids, _ in tokenizer.encode_rendered_batch(texts)]


def _encode_pairs(encode: Encode, texts: Sequence[tuple[str, list[str]]]) -> list[ChoiceTokens]:
    contexts = encode([context.rstrip() for context, _ in texts])
    wholes = iter(encode([context + choice for context, choices in texts for choice in choices]))
    return [
        ChoiceTokens(tokens, [next(wholes)[len(tokens) :] for _ in choices])
        for tokens, (_, choices) in zip(contexts, texts, strict=True)
    ]
