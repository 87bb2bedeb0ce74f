"""Conversations and preference pairs: from one jsonl line to checked messages in the form of transformers.

Both usual shapes of a conversation are read, MiniMind's {"conversations": [...]} and {"messages": [...], "tools"?},
and of a pair {"chosen": [...], "rejected": [...]}, with texts or messages lists and an optional "prompt".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minimind_jax.data.jsonl import DroppedLineError, LineError, parse_object

ROLES = ("system", "user", "assistant", "tool")
MAX_DEPTH = 64  # of tools and arguments; rendering them recurses


@dataclass(frozen=True)
class Conversation:
    """What `Tokenizer.apply_chat_template` takes.

    Attributes:
      messages: `role` and `content` (a string), for the assistant also `reasoning_content` (a string that is not
        blank) and `tool_calls` ({"type": "function", "function": {"name", "arguments": object}, "id"?}), for tool
        results also `name` and `tool_call_id` where the data have them.
      tools: JSON signatures; None where there are none.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None


@dataclass(frozen=True)
class Pair:
    """Two conversations that differ in their last message only, which is the assistant's."""

    chosen: Conversation
    rejected: Conversation


def parse_conversation(line: bytes) -> Conversation:
    """One line as a conversation that ends with the assistant.

    `tools` stand beside the messages or on the first one, of role system; they, `tool_calls` and `arguments` are JSON
    or a string of JSON. What is null or "" counts as missing, a system message without text too. What follows the
    last message of the assistant is dropped: it trains nothing, and a last question would make chat templates leave
    out the thoughts of the answer before it.

    Raises:
      LineError: names the field that is missing or wrong.
    """
    record = parse_object(line)
    name = next((name for name in ("conversations", "messages") if name in record), None)
    if name is None:
        raise LineError(f"lacks `conversations` or `messages`, has {_keys(record)}")
    conversation = _with_tools_beside(_conversation(record[name], name), record)
    messages = conversation.messages
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise LineError(f"`{name}` has no assistant message")
    return conversation


def parse_pair(line: bytes) -> Pair:
    """One line as a preference pair.

    `chosen` and `rejected` are texts, then `prompt` is needed; or messages: whole conversations, or, beginning with
    the assistant's, what follows `prompt`. `prompt` is the user's text or messages. Messages are read as in
    `parse_conversation`.

    Raises:
      LineError: names the field that is missing or wrong; a side does not end with the assistant.
      DroppedLineError: the sides have different prompts or tools, or are the same.
    """
    record = parse_object(line)
    chosen, rejected = _side(record, "chosen"), _side(record, "rejected")
    if chosen.messages[:-1] != rejected.messages[:-1]:
        raise DroppedLineError("`chosen` and `rejected` differ before their last message: both need the same prompt")
    if chosen.tools != rejected.tools:
        raise DroppedLineError("`chosen` and `rejected` have different `tools`")
    if chosen.messages == rejected.messages:
        raise DroppedLineError("`chosen` and `rejected` are the same")
    return Pair(chosen, rejected)


def _side(record: Mapping[str, Any], name: str) -> Conversation:
    value, prompt = record.get(name), record.get("prompt")
    if value is None:
        raise LineError(f"lacks `{name}`, has {_keys(record)}")
    if isinstance(value, str):
        side = Conversation([_text_message("assistant", value, name)], None)
    else:
        side = _conversation(value, name)
    if not side.messages or side.messages[-1]["role"] != "assistant":
        raise LineError(f"`{name}` does not end with an assistant message")
    # Many data sets repeat the prompt in the messages of both sides.
    if prompt is not None and side.messages[0]["role"] == "assistant":
        before = _prompt(prompt)
        side = Conversation([*before.messages, *side.messages], before.tools)
    if len(side.messages) == 1:
        raise LineError(f"lacks `prompt`, and `{name}` has no message before the answer")
    return _with_tools_beside(side, record)


def _prompt(value: Any) -> Conversation:
    if isinstance(value, str):
        return Conversation([_text_message("user", value, "prompt")], None)
    return _conversation(value, "prompt")


def _text_message(role: str, text: str, name: str) -> dict[str, Any]:
    if not text.strip():
        raise LineError(f"`{name}` is empty")
    _check(text, name)
    return {"role": role, "content": text}


def _conversation(value: Any, name: str) -> Conversation:
    """The messages `value` of field `name`, and the tools on the first of them."""
    if not isinstance(value, list):
        raise LineError(f"`{name}` is not a list of messages")
    if not value:
        raise LineError(f"`{name}` is empty")
    conversation = Conversation([], None)
    for number, entry in enumerate(value):
        where = f"{name}[{number}]"
        message = _message(entry, where)
        tools = _tools(entry.get("tools"), f"{where}.tools")
        if tools and (number or message["role"] != "system"):
            raise LineError(f"`{where}.tools`: only the first message may have tools, and only of role system")
        if tools:
            conversation = Conversation([], tools)
        if message["role"] != "system" or message["content"].strip():
            conversation.messages.append(message)
    return conversation


def _with_tools_beside(conversation: Conversation, record: Mapping[str, Any]) -> Conversation:
    tools = _tools(record.get("tools"), "tools")
    if tools and conversation.tools:
        raise LineError("`tools` stand both beside the messages and on the first of them: keep one")
    return Conversation(conversation.messages, tools or conversation.tools)


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise LineError(f"`{where}` is not an object")
    if "role" not in value:
        raise LineError(f"`{where}` lacks `role`, has {_keys(value)}")
    role = value["role"]
    if role not in ROLES:
        raise LineError(f"`{where}.role` is {repr(role)[:40]}, not one of {', '.join(ROLES)}")
    message = {"role": role, "content": _text(value, "content", where)}
    reasoning = _text(value, "reasoning_content", where)
    calls = _tool_calls(value.get("tool_calls"), f"{where}.tool_calls")
    assistants = {"reasoning_content": reasoning if reasoning.strip() else None, "tool_calls": calls}
    message |= {field: content for field, content in assistants.items() if content}
    if role != "assistant" and len(message) > 2:
        raise LineError(f"`{where}.{list(message)[2]}` on a message of role {role}: only the assistant's may have it")
    if role in ("user", "assistant") and len(message) == 2 and not message["content"].strip():
        raise LineError(f"`{where}.content` is empty")
    if role == "tool":
        message |= {field: value[field] for field in ("name", "tool_call_id") if isinstance(value.get(field), str)}
    for field, content in message.items():
        _check(content, f"{where}.{field}")
    return message


def _text(message: Mapping[str, Any], field: str, where: str) -> str:
    text = message.get(field)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise LineError(f"`{where}.{field}` is not a string")
    return text


def _tools(value: Any, where: str) -> list[dict[str, Any]] | None:
    tools = _objects(value, where)
    for number, tool in enumerate(tools):
        _function(tool, f"{where}[{number}]")
    _check(tools, where)
    return tools or None


def _tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    calls = []
    for number, entry in enumerate(_objects(value, where)):
        function, name = _function(entry, f"{where}[{number}]")
        arguments = _decoded(function.get("arguments"), f"{name}.arguments")
        if arguments is None:
            arguments = {}
        if not isinstance(arguments, dict):
            raise LineError(f"`{name}.arguments` is not an object")
        call = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        if isinstance(entry.get("id"), str):
            call["id"] = entry["id"]
        calls.append(call)
    return calls


def _function(entry: dict[str, Any], where: str) -> tuple[dict[str, Any], str]:
    """The object that has the `name`, and where it stands: the entry, or its `function`."""
    if entry.get("function") is not None:
        entry, where = entry["function"], f"{where}.function"
    if not isinstance(entry, dict):
        raise LineError(f"`{where}` is not an object")
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip():
        raise LineError(f"`{where}` lacks `name`")
    return entry, where


def _objects(value: Any, where: str) -> list[dict[str, Any]]:
    value = _decoded(value, where)
    if value is None:
        return []
    if not isinstance(value, list):
        raise LineError(f"`{where}` is not a list")
    for number, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise LineError(f"`{where}[{number}]` is not an object")
    return value


def _decoded(value: Any, where: str) -> Any:
    """A value that may come as a string of JSON; a blank string is None."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except json.JSONDecodeError as e:
        raise LineError(f"`{where}` is not JSON ({e.msg}, column {e.colno})") from None
    except (RecursionError, ValueError):  # ValueError: an integer of thousands of digits
        raise LineError(f"`{where}` is not JSON (nested too deeply, or a number is too long)") from None


def _check(value: Any, where: str, depth: int = 0) -> None:
    """Refuses lone surrogates, which no UTF-8 text can hold, and what rendering could not recurse into."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise LineError(f"`{where}` has half of a \\u surrogate pair, which is no character") from None
    elif isinstance(value, dict | list):
        if depth > MAX_DEPTH:
            raise LineError(f"`{where}` is nested more than {MAX_DEPTH} levels deep")
        for item in value:
            _check(item, where, depth + 1)
        if isinstance(value, dict):
            for item in value.values():
                _check(item, where, depth + 1)


def _keys(record: Mapping[str, Any]) -> str:
    keys = (key[:20].encode(errors="backslashreplace").decode() for key in list(record)[:5])
    return ", ".join(f"`{key}`" for key in keys) or "no field at all"
