"""Tool calls: does a model call the right functions with the right arguments, and none where none is wanted?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from minimind_jax.chat import Conversation, read_conversation, read_messages, read_tools
from minimind_jax.chat.answer_parser import CALL
from minimind_jax.data.jsonl import LineError
from minimind_jax.errors import UserError
from minimind_jax.evaluation.asking import AskingTask, Judge, Problem, Reply, open_asking
from minimind_jax.evaluation.task import TaskOptions

MAX_NEW_TOKENS = 256


def open_tool_calls(options: TaskOptions) -> AskingTask:
    """Records of conversations with tools; see `parse_tool_calls`. Raises as `open_asking`, and for plain text.

    Per turn: `exact`, all calls are right and there is no other; `names` and `calls`, the F1 of the functions' names
    and of whole calls (1 where none is wanted and none is made); `parsable`, every call that was begun is one.
    """
    if options.chat is False:
        raise UserError("--task toolcall needs the chat template, which shows a model its tools: leave --plain away")
    return open_asking("toolcall", options, parse_tool_calls, lambda _: Judge(judge, "exact", describe), MAX_NEW_TOKENS)


def parse_tool_calls(record: Mapping[str, Any]) -> Problem:
    """A conversation and the calls that are to follow.

    They are `gt`, a list of {"name", "arguments"}; or else those of the last message of the assistant that has some,
    and everything from there on is left out. In a conversation without any call its last answer is left out, and no
    call is right; its list of tools may be empty, but has to be there.
    """
    if record.get("gt") is not None:
        return _with_calls_beside(record)
    conversation = read_conversation(record).conversation
    messages, tools = list(conversation.messages), conversation.tools
    if tools is None and not _names_tools(record):
        raise LineError("has no `tools`: there is nothing to call")
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    calling = [number for number in answers if messages[number].get("tool_calls")]
    at = (calling or answers)[-1]
    return _problem(messages[:at], tools, messages[at].get("tool_calls", []))


def judge(problem: Problem, reply: Reply) -> dict[str, float]:
    """The scores of one turn."""
    wanted, made = [_call(call) for call in problem.gold], _made(reply)
    return {
        "exact": float(Counter(wanted) == Counter(made)),
        "names": _f1(Counter(name for name, _ in wanted), Counter(name for name, _ in made)),
        "calls": _f1(Counter(wanted), Counter(made)),
        "parsable": float(CALL not in reply.text),
    }


def describe(problems: Sequence[Problem], replies: Sequence[Sequence[Reply]]) -> dict[str, Any]:
    """Counts over all calls of all turns, and the precision, recall and F1 of whole calls.

    `arguments` is the share of calls of a wanted function whose arguments are right too.
    """
    n_wanted = n_made = n_named = n_right = n_unwanted = 0
    for problem, of_problem in zip(problems, replies, strict=True):
        wanted = Counter(map(_call, problem.gold))
        for reply in of_problem:
            made = Counter(_made(reply))
            n_wanted, n_made = n_wanted + wanted.total(), n_made + made.total()
            n_named += (_names(wanted) & _names(made)).total()
            n_right += (wanted & made).total()
            n_unwanted += bool(made) and not wanted
    return {
        "calls_wanted": n_wanted,
        "calls_made": n_made,
        "names_right": n_named,
        "calls_right": n_right,
        "turns_called_without_need": n_unwanted,
        "precision": n_right / n_made if n_made else None,
        "recall": n_right / n_wanted if n_wanted else None,
        "f1": 2 * n_right / (n_made + n_wanted) if n_made + n_wanted else None,
        "arguments": n_right / n_named if n_named else None,
    }


def same_json(value: Any) -> Any:
    """A hashable form, equal for JSON that is equal: numbers by value, objects whatever their order."""
    if isinstance(value, dict):
        return "object", frozenset((key, same_json(item)) for key, item in value.items())
    if isinstance(value, list):
        return "list", tuple(map(same_json, value))
    if isinstance(value, bool) or value is None:
        return "constant", value
    return ("number", Decimal(repr(value))) if isinstance(value, int | float) else ("string", value)


def _with_calls_beside(record: Mapping[str, Any]) -> Problem:
    gold = record["gt"]
    if not isinstance(gold, list) or not all(isinstance(call, dict) for call in gold):
        raise LineError("`gt` is not a list of calls, {name, arguments}: answers are scored by --task exact")
    calls = read_messages([{"role": "assistant", "tool_calls": gold}], "gt").messages[0].get("tool_calls", [])
    key = next((key for key in ("conversations", "messages") if record.get(key)), "")
    if not key:
        raise LineError("lacks `conversations` or `messages`")
    conversation = read_messages(record[key], key)
    messages = list(conversation.messages)
    if messages[-1]["role"] == "assistant":  # a placeholder
        messages.pop()
    tools = conversation.tools or read_tools(record.get("tools"), "tools")
    if tools is None and not _names_tools(record):
        raise LineError("has no `tools`: there is nothing to call")
    return _problem(messages, tools, calls)


def _names_tools(record: Mapping[str, Any]) -> bool:
    """Whether a record has a list of tools, be it empty, beside its messages or on one of them."""
    messages: Sequence[Mapping[str, Any]] = record.get("conversations") or record.get("messages") or []
    return any(holder.get(key) is not None for holder in (record, *messages) for key in ("tools", "functions"))


def _problem(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    calls: Sequence[Mapping[str, Any]],
) -> Problem:
    if calls and not tools:
        raise LineError("has calls, but its list of `tools` is empty")
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise LineError("has no question before the calls")
    return Problem("", Conversation(messages, tools or []), [dict(call["function"]) for call in calls])


def _made(reply: Reply) -> list[tuple[str, Any]]:
    return [_call({"name": call.name, "arguments": json.loads(call.arguments)}) for call in reply.calls]


def _call(call: Mapping[str, Any]) -> tuple[str, Any]:
    return call["name"], same_json(call["arguments"])


def _names(calls: Counter[tuple[str, Any]]) -> Counter[str]:
    names: Counter[str] = Counter()
    for (name, _), n in calls.items():
        names[name] += n
    return names


def _f1(wanted: Counter[Any], made: Counter[Any]) -> float:
    n = wanted.total() + made.total()
    return 2 * (wanted & made).total() / n if n else 1.0
