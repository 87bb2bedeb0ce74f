"""Messages and tools of chat requests: checked, brought into the form of the chat template, rendered.

The rules are those of the training data (data/conversation.py), so that a prompt is what training has seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minimind_jax.serving.answer_parser import THINK
from minimind_jax.serving.errors import bad_request
from minimind_jax.tokenizer import Tokenizer
from minimind_jax.tokenizer.chat import with_empty_thoughts

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Conversation:
    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Prompt:
    tokens: list[int]
    in_thought: bool = False  # it ends with an open `<think>`


def render(
    tokenizer: Tokenizer,
    conversation: Conversation,
    thinking: bool,
    variables: Mapping[str, Any] | None = None,
    continue_final: bool = False,
) -> Prompt:
    """The prompt for the assistant's next message, or for the rest of its last one.

    Answers after the last question that have no thoughts get the empty block that training gives them: those which
    called a function, whose results the model is about to read.

    Args:
      variables: further ones of the template.
      continue_final: the last message, the assistant's, is not finished.

    Raises:
      UserError: as `inference.chat_prompt`.
    """
    messages = with_empty_thoughts(conversation.messages)
    text = tokenizer.apply_chat_template(
        messages,
        conversation.tools,
        **{**(variables or {}), "enable_thinking": thinking, "add_generation_prompt": not continue_final},
    )
    if continue_final:
        text = text[: text.rfind(tokenizer.decode([tokenizer.eos_id], skip_special_tokens=False))]
    tokens = tokenizer.encode_rendered(text)
    end = tokenizer.decode(tokens[-4 * len(THINK) :], skip_special_tokens=False)
    return Prompt(tokens, in_thought=end.rstrip().endswith(THINK))


def parse_messages(values: Sequence[Any]) -> list[dict[str, Any]]:
    """Messages in OpenAI's form as the chat template takes them.

    Raises:
      ApiError: 400, names the field that is missing, wrong or not supported.
    """
    if not values:
        raise bad_request("`messages` is empty: give at least one message", "messages")
    return [_message(value, f"messages[{number}]") for number, value in enumerate(values)]


def parse_tools(values: Sequence[Any]) -> list[dict[str, Any]] | None:
    """Function signatures, which stand in the prompt as they are. Raises ApiError as `parse_messages`."""
    for number, value in enumerate(values):
        _function(value, f"tools[{number}]")
    return list(values) or None


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad_request(f"`{where}` must be an object with role and content", where)
    role = "system" if value.get("role") == "developer" else value.get("role")
    if role not in ROLES:
        raise bad_request(f"`{where}.role` must be one of {', '.join(ROLES)}", f"{where}.role")
    message = {"role": role, "content": _content(value.get("content"), f"{where}.content")}
    if role == "assistant":
        if value.get("function_call") is not None:
            raise bad_request(f"`{where}.function_call` is not supported: use tool_calls", f"{where}.function_call")
        reasoning, calls = value.get("reasoning_content"), value.get("tool_calls")
        if reasoning is not None:
            if not isinstance(reasoning, str):
                raise bad_request(f"`{where}.reasoning_content` must be a string", f"{where}.reasoning_content")
            if reasoning.strip():
                message["reasoning_content"] = reasoning
        if calls is not None:
            if not isinstance(calls, list):
                raise bad_request(f"`{where}.tool_calls` must be a list", f"{where}.tool_calls")
            if calls:
                message["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    elif value.get("tool_calls"):
        raise bad_request(f"`{where}.tool_calls`: only the assistant's messages may have it", f"{where}.tool_calls")
    if value.get("content") is None and "tool_calls" not in message:
        raise bad_request(f"`{where}.content` is missing", f"{where}.content")
    return message


def _content(value: Any, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise bad_request(f"`{where}` must be a string or a list of text parts", where)
    texts = []
    for number, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            what = f"of type {kind!r}"[:60] if isinstance(kind, str) else "without a type"
            message = (
                f"`{where}[{number}]` is a part {what}: this model reads text only, {{'type': 'text', 'text': ...}}"
            )
            raise bad_request(message, f"{where}[{number}].type")
        if not isinstance(part.get("text"), str):
            raise bad_request(f"`{where}[{number}].text` must be a string", f"{where}[{number}].text")
        texts.append(part["text"])
    return "\n".join(texts)


def _call(value: Any, where: str) -> dict[str, Any]:
    function = _function(value, where)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            raise bad_request(f"`{where}.function.arguments` is not JSON", f"{where}.function.arguments") from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise bad_request(f"`{where}.function.arguments` must be a JSON object", f"{where}.function.arguments")
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _function(value: Any, where: str) -> dict[str, Any]:
    """The object with the function's name: `function` of OpenAI's wrapping, or the value itself."""
    if not isinstance(value, dict):
        raise bad_request(f"`{where}` must be an object", where)
    if value.get("type", "function") != "function":
        raise bad_request(f"`{where}.type` must be 'function': other tools are not supported", f"{where}.type")
    function = value["function"] if value.get("function") is not None else value
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise bad_request(f"`{where}.function.name` must be a string that is not empty", f"{where}.function.name")
    return function
