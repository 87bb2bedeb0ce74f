"""Chat: rendering a Jinja template as transformers does, and keeping content from opening or closing anything."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# What an assistant may write by itself: data sets hold its thoughts and its calls as literal text.
ASSISTANT_MARKS = frozenset({"<think>", "</think>", "<tool_call>", "</tool_call>"})


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks assistant text in some templates; here it only renders."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML; transformers' does not.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def compile_template(source: str) -> jinja2.Template:
    """Compiles a chat template with the filters and globals that transformers gives it.

    Raises:
      jinja2.TemplateSyntaxError: `source` is no Jinja template.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


class Neutralizer:
    """Breaks up control-token look-alikes by a space after their first character: `<|im_end|>` -> `< |im_end|>`.

    A space, not a zero-width character: readers of data and logs see that something was changed, no normalizer
    removes it, and it costs no rare bytes.
    """

    def __init__(self, control_tokens: Collection[str]) -> None:
        self._all = _any_of(control_tokens)
        self._not_assistants = _any_of(set(control_tokens) - ASSISTANT_MARKS)

    def text(self, text: str, from_assistant: bool = False) -> str:
        """`text` without any control token; `from_assistant` leaves `ASSISTANT_MARKS` as they are."""
        pattern = self._not_assistants if from_assistant else self._all
        # Again until none is left: foreign control tokens may overlap each other.
        while pattern and pattern.search(text):
            text = pattern.sub(_break_up, text)
        return text

    def value(self, value: Any) -> Any:
        """The same for every string, keys included, in nested lists and mappings."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.value(key): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Messages in which only the assistant's own `content` still holds marks, and those `ASSISTANT_MARKS`."""
        clean = []
        for message in messages:
            fields = self.value(message)
            content = message.get("content")
            if message.get("role") == "assistant" and isinstance(content, str):
                fields["content"] = self.text(content, from_assistant=True)
            clean.append(fields)
        return clean


def _any_of(tokens: Collection[str]) -> re.Pattern[str] | None:
    # Longest first: where one token begins another, the whole of the longer one is taken.
    ordered = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def _break_up(match: re.Match[str]) -> str:
    token = match.group()
    return f"{token[0]} {token[1:]}" if len(token) > 1 else "\N{REPLACEMENT CHARACTER}"
