"""The records of data files that hold conversations or preference pairs, in all the forms that are around.

Keys that change what a record means are honoured, or the record is refused by their name; the others are told of.
docs/chat.md has the table of forms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from minimind_jax.chat.conversation import (
    MESSAGE_KEYS,
    Conversation,
    ConversationError,
    check_text,
    is_blank,
    name_keys,
    read_messages,
    read_tools_of,
)

_BESIDE = ("system", "system_prompt", "tools", "functions")
_ALPACA = ("instruction", "input", "history")
# What a model that reads text cannot be shown.
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")


@dataclass(frozen=True)
class ConversationRecord:
    """A conversation that ends with the assistant, and what its record was like.

    Attributes:
      form: the form's name, for the user.
      unknown: keys that mean nothing to us, those of messages as `messages.KEY`.
    """

    conversation: Conversation
    form: str
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class PairRecord:
    """Two conversations that differ in their last message only, the assistant's. Else as ConversationRecord."""

    chosen: Conversation
    rejected: Conversation
    form: str
    unknown: tuple[str, ...]


def read_conversation(record: Mapping[str, Any]) -> ConversationRecord:
    """A record as a conversation.

    What follows the last message of the assistant is left out: it trains nothing, and a last question would make chat
    templates leave out the thoughts of the answer before it.

    Raises:
      ConversationError: names the key that is missing, wrong or cannot be honoured; nothing to learn.
    """
    _refuse_media(record)
    known: tuple[str, ...]
    lists = [name for name in ("conversations", "messages") if name in record]
    filled = [name for name in lists if record[name]]
    if len(filled) > 1 and record["conversations"] != record["messages"]:
        raise ConversationError("`conversations` and `messages` are the same thing and differ: keep one", "messages")
    name = next(iter(filled or lists), "")
    if name:
        known = (name, *_BESIDE)
        conversation = _with_beside(read_messages(record[name], name, learnt=True), record)
        form = "`conversations` by ShareGPT (`from`, `value`)" if _is_sharegpt(record[name]) else f"`{name}`"
    elif "instruction" in record and "output" in record:
        name, known = "output", (*_ALPACA, "output", "reasoning_content", *_BESIDE)
        answer = _message("assistant", record["output"], "output") | {
            "reasoning_content": record.get("reasoning_content")
        }
        messages = [*_alpaca_prompt(record), answer]
        conversation = _with_beside(read_messages(messages, "messages"), record)
        form = "Alpaca (`instruction`, `output`)"
    elif "prompt" in record and "completion" in record:
        name, known = "completion", ("prompt", "completion", "label", *_BESIDE)
        if record.get("label") not in (None, True, 1):
            raise ConversationError(
                "`label` is false: this completion is an example of what is not wanted, take such records out", "label"
            )
        before = _prompt(record["prompt"], "prompt")
        if before.messages and before.messages[-1]["role"] == "assistant":
            raise ConversationError(
                "`prompt` ends with the assistant's message: the answer belongs to `completion`", "prompt"
            )
        # As trl has it, only the completion is learnt.
        answers = {number for number, message in enumerate(before.messages) if message["role"] == "assistant"}
        before = replace(before, context=frozenset(answers))
        conversation = _with_beside(_joined(before, _side(record, "completion", learnt=True)), record)
        form = "`prompt`, `completion`"
    else:
        raise ConversationError(
            f"lacks `conversations` or `messages` (or instruction and output, or prompt and completion), has "
            f"{name_keys(record)}"
        )
    conversation = _up_to_last_answer(conversation, name)
    return ConversationRecord(conversation, form, _unknown(record, known))


def read_pair(record: Mapping[str, Any]) -> PairRecord:
    """A record as a preference pair.

    `chosen` and `rejected` are texts or one message, then a prompt is needed; or messages: whole conversations, or,
    beginning with the assistant's, what follows the prompt. The prompt is `prompt` (the user's text, or messages),
    `conversations` or `messages`, or Alpaca's `instruction`.

    Raises:
      ConversationError: as `read_conversation`; a side does not end with the assistant; `dropped`: the sides have
        different prompts or tools, or are the same.
    """
    _refuse_media(record)
    source = next((key for key in ("prompt", "conversations", "messages", "instruction") if record.get(key)), "")
    chosen, rejected = (_pair_side(record, key, source) for key in ("chosen", "rejected"))
    if chosen.messages[:-1] != rejected.messages[:-1]:
        message = "`chosen` and `rejected` differ before their last message: both need the same prompt"
        raise ConversationError(message, "rejected", dropped=True)
    if chosen.tools != rejected.tools:
        raise ConversationError("`chosen` and `rejected` have different `tools`", "rejected", dropped=True)
    if chosen.messages == rejected.messages:
        raise ConversationError("`chosen` and `rejected` are the same", "rejected", dropped=True)
    known = (*(_ALPACA if source == "instruction" else (source,)), "chosen", "rejected", *_BESIDE)
    apart = f"`{source}` beside them" if source else "the prompt in both"
    return PairRecord(chosen, rejected, f"`chosen` and `rejected`, {apart}", _unknown(record, known))


def _pair_side(record: Mapping[str, Any], key: str, source: str) -> Conversation:
    if record.get(key) is None:
        raise ConversationError(f"lacks `{key}`, has {name_keys(record)}", key)
    side = _side(record, key)
    if not side.messages or side.messages[-1]["role"] != "assistant":
        raise ConversationError(f"`{key}` does not end with an assistant message", key)
    if is_blank(side.messages[-1]):
        raise ConversationError(f"`{key}` is empty: its last message says nothing", key)
    if len(side.messages) - 1 in side.context:
        raise ConversationError(f"the last message of `{key}` has `weight` 0, but it is what a pair is about", key)
    if source:
        alpaca = source == "instruction"
        before = read_messages(_alpaca_prompt(record), "messages") if alpaca else _prompt(record[source], source)
        if side.messages[0]["role"] == "assistant":
            side = _joined(before, side)
        elif not _repeats(side, before):  # as many data sets do, in both sides
            raise ConversationError(f"`{source}` is not what `{key}` has before its answer: keep one of them", source)
    if len(side.messages) == 1:
        raise ConversationError(f"lacks `prompt`, and `{key}` has no message before the answer", key)
    return _with_beside(side, record)


def _repeats(side: Conversation, before: Conversation) -> bool:
    """Whether the messages of `before` stand in `side` before its answer."""
    said = [(message["role"], message["content"].strip()) for message in side.messages[:-1]]
    wanted = [(message["role"], message["content"].strip()) for message in before.messages]
    return any(said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1))


def _side(record: Mapping[str, Any], key: str, learnt: bool = False) -> Conversation:
    """An answer, or a conversation that ends in one: a text, a message or a list of them."""
    value = record[key]
    if isinstance(value, str):
        return Conversation([_message("assistant", value, key)])
    return read_messages([value] if isinstance(value, dict) else value, key, learnt=learnt)


def _prompt(value: Any, key: str) -> Conversation:
    if isinstance(value, str):
        return Conversation([_message("user", value, key)])
    return read_messages(value, key)


def _alpaca_prompt(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of `history`, pairs of question and answer, and the question that `output` answers."""
    messages = []
    history = record.get("history") or []
    if not isinstance(history, list):
        raise ConversationError("`history` is not a list of [question, answer]", "history")
    for number, exchange in enumerate(history):
        where = f"history[{number}]"
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise ConversationError(f"`{where}` is not a pair of question and answer", where)
        messages += [_message("user", exchange[0], f"{where}[0]"), _message("assistant", exchange[1], f"{where}[1]")]
    asked = []
    for key in ("instruction", "input"):
        value = record.get(key)
        if value is not None and not isinstance(value, str):
            raise ConversationError(f"`{key}` is not a string", key)
        if value and value.strip():
            asked.append(value)
    return [*messages, _message("user", "\n".join(asked), "instruction")]


def _message(role: str, text: Any, where: str) -> dict[str, Any]:
    if not isinstance(text, str):
        raise ConversationError(f"`{where}` is not a string", where)
    if not text.strip():
        raise ConversationError(f"`{where}` is empty", where)
    check_text(text, where)
    return {"role": role, "content": text}


def _joined(before: Conversation, after: Conversation) -> Conversation:
    context = before.context | {len(before.messages) + number for number in after.context}
    return Conversation([*before.messages, *after.messages], before.tools or after.tools, context)


def _with_beside(conversation: Conversation, record: Mapping[str, Any]) -> Conversation:
    """With the system prompt and the functions that stand beside the messages."""
    tools, system = read_tools_of(record, ""), record.get("system") or record.get("system_prompt")
    if tools and conversation.tools:
        raise ConversationError("`tools` stand both beside the messages and on the first of them: keep one", "tools")
    if system is not None and not isinstance(system, str):
        raise ConversationError("`system` is not a string", "system")
    if system and system.strip():
        if conversation.messages and conversation.messages[0]["role"] == "system":
            raise ConversationError(
                "a system prompt stands both in `system` and in the first of the messages: keep one", "system"
            )
        conversation = _joined(Conversation([_message("system", system, "system")]), conversation)
    return replace(conversation, tools=tools or conversation.tools)


def _up_to_last_answer(conversation: Conversation, name: str) -> Conversation:
    messages = list(conversation.messages)
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise ConversationError(f"`{name}` has no assistant message", name)
    answers = {number for number, message in enumerate(messages) if message["role"] == "assistant"}
    if answers <= conversation.context:
        raise ConversationError(f"every answer in `{name}` has `weight` 0: nothing to learn", name, dropped=True)
    return replace(conversation, messages=messages)


def _is_sharegpt(values: Any) -> bool:
    return "role" not in values[0]


def _refuse_media(record: Mapping[str, Any]) -> None:
    for key in _MEDIA:
        if record.get(key):
            raise ConversationError(f"has `{key}`: this model reads text only, take such records out", key)


def _unknown(record: Mapping[str, Any], known: tuple[str, ...]) -> tuple[str, ...]:
    """Keys of the record and of its messages that nobody has asked for, each once."""
    own = [key for key, value in record.items() if key not in known and value is not None]
    lists = [record[key] for key in known if isinstance(record.get(key), list)]
    messages = [message for values in lists for message in values if isinstance(message, dict)]
    inner = {f"messages.{key}" for m in messages if "role" in m or "from" in m for key in m.keys() - MESSAGE_KEYS}
    return (*own, *sorted(inner))
