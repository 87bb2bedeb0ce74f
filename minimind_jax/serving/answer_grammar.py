"""Grammars of answers whose form a request fixes: JSON, calls of functions, thoughts before them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from minimind_jax.chat.answer_parser import CALL, END_CALL, END_THINK, THINK
from minimind_jax.errors import UserError
from minimind_jax.inference.constraint import Grammars
from minimind_jax.serving.errors import bad_request


def json_grammar(grammars: Grammars, schema: Mapping[str, Any]) -> str:
    """Of an answer that is JSON and nothing else. Raises ApiError (400) for a schema that cannot be followed."""
    return f"start: {_json_rule(grammars, schema, 'response_format')}\n"


def chat_grammar(
    grammars: Grammars,
    schema: Mapping[str, Any] | None,
    calls: Mapping[str, Mapping[str, Any]],
    *,
    several_calls: bool,
    thoughts: Literal["", "open", "may"],
) -> str:
    """Of an answer that is JSON, or calls, or whichever of the two the model chooses.

    Args:
      schema: of the JSON; None = it must be calls.
      calls: `function_schemas` of those that may be called.
      several_calls: else one.
      thoughts: "open" where the prompt has opened them, "may" where the model may do so.

    Raises:
      ApiError: 400, a schema that cannot be followed.
    """
    rules, answers = [], []
    if schema is not None:
        rules.append(f"json: {_json_rule(grammars, schema, 'response_format')}")
        answers.append("json")
    if calls:
        opening, end = grammars.mark(CALL), grammars.mark(END_CALL)
        for number, (name, parameters) in enumerate(calls.items()):
            head = f'\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '
            rules.append(f"call{number}: {opening} {_text(head)} arguments{number} {_text('}' + chr(10))} {end}")
            rules.append(f"arguments{number}: {_json_rule(grammars, parameters, 'tools')}")
        rules.append("call: " + " | ".join(f"call{number}" for number in range(len(calls))))
        answers.append(f"call ({_text(chr(10))} call)*" if several_calls else "call")
    before = ""
    if thoughts:
        end = grammars.mark(END_THINK)
        is_token = end.startswith("<")
        rules.append("thoughts: /(?s:.*)/ " + end if is_token else f"thoughts[suffix={end}]: /(?s:.*)/")
        before = "thoughts BREAKS " if thoughts == "open" else f"({grammars.mark(THINK)} thoughts BREAKS)? "
        rules.append(r"BREAKS: /\n{0,2}/")
    return "\n".join([f"start: {before}({' | '.join(answers)})", *rules]) + "\n"


def function_schemas(tools: Sequence[Mapping[str, Any]], name: str | None) -> dict[str, dict[str, Any]]:
    """The schema of each function's arguments; only of the one with `name`, if given.

    Raises:
      ApiError: 400, there is none of this name, or its parameters are no schema of an object.
    """
    schemas = {}
    for number, tool in enumerate(tools):
        function = tool["function"] if tool.get("function") is not None else tool
        if name in (None, function["name"]):
            schemas[function["name"]] = _parameters(function.get("parameters"), f"tools[{number}].function.parameters")
    if not schemas:
        raise bad_request(f"`tool_choice` names {name!r}, which is none of the `tools`", "tool_choice")
    return schemas


def _parameters(value: Any, field: str) -> dict[str, Any]:
    schema = {} if value is None else value
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise bad_request(f"`{field}` must be the JSON schema of an object", field)
    return {**schema, "type": "object"}


def _json_rule(grammars: Grammars, schema: Mapping[str, Any], field: str) -> str:
    try:
        return grammars.json_rule(schema)
    except UserError as e:
        raise bad_request(f"`{field}` holds a schema that cannot be followed: {e}", field) from None


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
