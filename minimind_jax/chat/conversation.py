"""What a conversation is: messages and tools, read from whatever shape they come in, and checked.

One set of rules for training data, evaluation, the terminal chat and the server. Messages are OpenAI's, MiniMind's
(JSON in strings) or ShareGPT's (`from`, `value`); out come those that chat templates take.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minimind_jax.errors import UserError

ROLES = ("system", "user", "assistant", "tool")
_OTHER_NAMES = {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",  # its text is the call
    "function": "tool",
    "observation": "tool",
}
MESSAGE_KEYS = frozenset(
    {"role", "from", "content", "value", "reasoning_content", "reasoning", "tool_calls", "function_call", "tools"}
    | {"functions", "weight", "train", "loss", "name", "tool_call_id"}
)
MAX_DEPTH = 64  # of tools and arguments; rendering them recurses


class ConversationError(UserError):
    """What is wrong with a conversation; its text names the field.

    Attributes:
      field: where it is, such as `messages[1].content`; "" if it is the whole.
      dropped: the conversation is well-formed, but there is nothing to learn from it.
    """

    def __init__(self, message: str, field: str = "", *, dropped: bool = False) -> None:
        super().__init__(message)
        self.field, self.dropped = field, dropped


@dataclass(frozen=True)
class Conversation:
    """What `Tokenizer.apply_chat_template` takes.

    Attributes:
      messages: `role` and `content` (a string), for the assistant also `reasoning_content` (a string that is not
        blank) and `tool_calls` ({"type": "function", "function": {"name", "arguments": object}, "id"?}), for tool
        results also `name` and `tool_call_id` where they are given.
      tools: JSON signatures; None where there are none.
      context: numbers of the assistant's messages that are not to be learnt (`weight` 0, `train` or `loss` false).
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    context: frozenset[int] = frozenset()


def read_messages(values: Any, where: str, *, learnt: bool = False) -> Conversation:
    """Messages in any of the shapes, and the tools on the first of them.

    What is null or "" counts as missing, a system message without text too.

    Args:
      values: a list of messages.
      where: its name, for errors.
      learnt: what the assistant says is to be learnt, so it may not be empty (but for a message of `weight` 0).

    Raises:
      ConversationError: names the field that is missing or wrong.
    """
    if not isinstance(values, list):
        raise ConversationError(f"`{where}` is not a list of messages", where)
    if not values:
        raise ConversationError(f"`{where}` is empty: give at least one message", where)
    messages: list[dict[str, Any]] = []
    context: set[int] = set()
    tools = None
    for number, value in enumerate(values):
        at = f"{where}[{number}]"
        message = _message(value, at)
        own_tools = read_tools_of(value, at)
        if own_tools and (number or message["role"] != "system"):
            raise ConversationError(f"`{at}.tools`: only the first message may have tools, and only of role system", at)
        tools = own_tools or tools
        if 0 in (value.get("weight"), value.get("train"), value.get("loss")):
            context.add(len(messages))
        elif learnt and message["role"] == "assistant" and is_blank(message):
            text_key = "value" if "value" in value else "content"
            raise ConversationError(f"`{at}.{text_key}` is empty: there is nothing to learn", f"{at}.{text_key}")
        if message["role"] != "system" or message["content"].strip():
            messages.append(message)
    return Conversation(messages, tools, frozenset(context))


def read_tools_of(value: Mapping[str, Any], where: str) -> list[dict[str, Any]] | None:
    """The signatures in `tools`, or by their older name in `functions`. Raises ConversationError as `read_messages`."""
    prefix = f"{where}." if where else ""
    found = {key: tools for key in ("tools", "functions") if (tools := read_tools(value.get(key), f"{prefix}{key}"))}
    if len(found) > 1:
        raise ConversationError(
            f"`{prefix}tools` and `{prefix}functions` are the same thing: keep one", f"{prefix}tools"
        )
    return next(iter(found.values()), None)


def read_tools(value: Any, where: str) -> list[dict[str, Any]] | None:
    """Function signatures, as JSON or in a string. Raises ConversationError as `read_messages`."""
    tools = _objects(value, where)
    for number, tool in enumerate(tools):
        _function(tool, f"{where}[{number}]")
    check_text(tools, where)
    return tools or None


def is_blank(message: Mapping[str, Any]) -> bool:
    """Whether a message says nothing at all: no text, no thoughts, no call."""
    return not message["content"].strip() and "reasoning_content" not in message and "tool_calls" not in message


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConversationError(f"`{where}` is not an object with role and content", where)
    key = _only(value, where, "role", "from")
    if value.get(key) is None and "from" not in value and "role" not in value:
        raise ConversationError(f"`{where}` lacks `role`, has {name_keys(value)}", f"{where}.role")
    name = value[key]
    role = _OTHER_NAMES.get(name, name) if isinstance(name, str) else name
    if role not in ROLES:
        raise ConversationError(
            f"`{where}.{key}` is {repr(name)[:40]}, not one of {', '.join(ROLES)}", f"{where}.{key}"
        )
    if value.get("weight", 1) not in (None, 0, 1):
        raise ConversationError(f"`{where}.weight` is neither 0 (not learnt) nor 1", f"{where}.weight")
    text_key = _only(value, where, "content", "value")
    message: dict[str, Any] = {"role": role, "content": ""}
    if name == "function_call":
        if value.get("tool_calls"):
            problem = f"`{where}` is a call by `{key}`, and has `tool_calls` besides: keep one"
            raise ConversationError(problem, f"{where}.tool_calls")
        if calls := _tool_calls(value.get(text_key), f"{where}.{text_key}"):
            message["tool_calls"] = calls
    else:
        message["content"] = _text(value.get(text_key), f"{where}.{text_key}")
    message |= _assistants_fields(value, where, role)
    if role == "user" and not message["content"].strip():
        missing = "missing" if value.get(text_key) is None else "empty"
        raise ConversationError(f"`{where}.{text_key}` is {missing}", f"{where}.{text_key}")
    if role == "tool":
        message |= {field: value[field] for field in ("name", "tool_call_id") if isinstance(value.get(field), str)}
    for field, content in message.items():
        check_text(content, f"{where}.{text_key if field == 'content' else field}")
    return message


def _assistants_fields(value: Mapping[str, Any], where: str, role: str) -> dict[str, Any]:
    """Thoughts and calls, as far as there are any. Raises ConversationError where another role has them."""
    thoughts = _only(value, where, "reasoning_content", "reasoning")
    calls = _only(value, where, "tool_calls", "function_call")
    reasoning = _text(value.get(thoughts), f"{where}.{thoughts}")
    found: dict[str, Any] = {}
    if reasoning.strip():
        found["reasoning_content"] = reasoning
    if tool_calls := _tool_calls(value.get(calls), f"{where}.{calls}"):
        found["tool_calls"] = tool_calls
    if found and role != "assistant":
        field = f"{where}.{thoughts if 'reasoning_content' in found else calls}"
        raise ConversationError(f"`{field}` on a message of role {role}: only the assistant's may have it", field)
    return found


def _only(value: Mapping[str, Any], where: str, usual: str, other: str) -> str:
    """Which of two keys for one thing is used. Raises ConversationError where both are, and say different things."""
    filled = [key for key in (usual, other) if value.get(key) not in (None, "", [], {}, "[]")]
    if len(filled) > 1 and value[usual] != value[other]:
        message = f"`{where}.{usual}` and `{where}.{other}` are the same thing and differ: keep one"
        raise ConversationError(message, f"{where}.{other}")
    return filled[0] if filled else (usual if usual in value or other not in value else other)


def _text(value: Any, where: str) -> str:
    """A string, or the texts of a list of parts; null is ""."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ConversationError(f"`{where}` is not a string (nor a list of text parts)", where)
    texts = []
    for number, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            what = f"of type {kind!r}"[:60] if isinstance(kind, str) else "without a type"
            raise ConversationError(
                f"`{where}[{number}]` is a part {what}: this model reads text only, {{'type': 'text', 'text': ...}}",
                f"{where}[{number}].type",
            )
        if not isinstance(part.get("text"), str):
            raise ConversationError(f"`{where}[{number}].text` is not a string", f"{where}[{number}].text")
        texts.append(part["text"])
    return "\n".join(texts)


def _tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls as a list, or one call alone."""
    value = _decoded(value, where)
    calls = []
    for number, entry in enumerate(_objects([value] if isinstance(value, dict) else value, where)):
        function, at = _function(entry, f"{where}[{number}]")
        key = _only(function, at, "arguments", "parameters")  # the latter is Llama's
        odd = function.keys() - {"arguments", "parameters", "name", "id", "type", "index", "function"}
        if odd and function.get(key) is None:
            raise ConversationError(f"`{at}` has no `arguments` but {name_keys(dict.fromkeys(sorted(odd)))}", at)
        arguments = _decoded(function.get(key), f"{at}.{key}")
        if arguments is None:
            arguments = {}
        if not isinstance(arguments, dict):
            raise ConversationError(f"`{at}.{key}` is not an object", f"{at}.{key}")
        call: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        if isinstance(entry.get("id"), str):
            call["id"] = entry["id"]
        calls.append(call)
    return calls


def _function(entry: dict[str, Any], where: str) -> tuple[dict[str, Any], str]:
    """The object that has the `name`, and where it stands: the entry, or its `function`."""
    if isinstance(kind := entry.get("type"), str) and kind != "function" and "name" not in entry:
        raise ConversationError(f"`{where}.type` is {kind[:40]!r}: only functions can be called", f"{where}.type")
    if entry.get("function") is not None:
        entry, where = entry["function"], f"{where}.function"
    if not isinstance(entry, dict):
        raise ConversationError(f"`{where}` is not an object", where)
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip():
        raise ConversationError(f"`{where}` lacks `name`", f"{where}.name")
    return entry, where


def _objects(value: Any, where: str) -> list[dict[str, Any]]:
    value = _decoded(value, where)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ConversationError(f"`{where}` is not a list", where)
    for number, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise ConversationError(f"`{where}[{number}]` is not an object", f"{where}[{number}]")
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
        raise ConversationError(f"`{where}` is not JSON ({e.msg}, column {e.colno})", where) from None
    except (RecursionError, ValueError):  # ValueError: an integer of thousands of digits
        message = f"`{where}` is not JSON (nested too deeply, or a number is too long)"
        raise ConversationError(message, where) from None


def check_text(value: Any, where: str, depth: int = 0) -> None:
    """Refuses lone surrogates, which no UTF-8 text can hold, and what rendering could not recurse into."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            message = f"`{where}` has half of a \\u surrogate pair, which is no character"
            raise ConversationError(message, where) from None
    elif isinstance(value, dict | list):
        if depth > MAX_DEPTH:
            raise ConversationError(f"`{where}` is nested more than {MAX_DEPTH} levels deep", where)
        for item in value:
            check_text(item, where, depth + 1)
        if isinstance(value, dict):
            for item in value.values():
                check_text(item, where, depth + 1)


def name_keys(record: Mapping[str, Any]) -> str:
    """The first keys of an object, for messages."""
    keys = (key[:20].encode(errors="backslashreplace").decode() for key in list(record)[:5])
    return ", ".join(f"`{key}`" for key in keys) or "no field at all"
