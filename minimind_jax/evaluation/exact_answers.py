"""Problems with one right answer: GSM8K in its published form, and jsonl files with an `answer`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from minimind_jax.chat import Conversation, check_text, read_messages
from minimind_jax.data.generate import is_correct
from minimind_jax.data.jsonl import LineError
from minimind_jax.evaluation.asking import AskingTask, Judge, Problem, Reply, open_asking
from minimind_jax.evaluation.task import TaskOptions

MAX_NEW_TOKENS = 256
_MARK = "####"  # before the final answer, in GSM8K and what follows it
_CALCULATOR = re.compile(r"<<[^>]*>>")
# The filters of lm-eval's gsm8k: after the mark, and the last number.
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_NUMBER = re.compile(r"[-+]?\$?\d[\d,]*(?:\.\d+)?")


def open_gsm8k(options: TaskOptions) -> AskingTask:
    """Records {"question", "answer"}, the answer a solution that ends in "#### number". Raises as `open_asking`.

    `strict` and `flexible` are exact_match of lm-eval's two filters: the number after "####", and the last number.
    """
    return open_asking("gsm8k", options, parse_gsm8k, lambda _: Judge(judge_gsm8k, "flexible"), MAX_NEW_TOKENS)


def open_exact(options: TaskOptions) -> AskingTask:
    """Records with a question and an `answer`; see `parse_exact`. Raises as `open_asking`.

    `exact`: the final answer is an accepted one by `is_correct`. The final answer is what stands after the last "####"
    of a reply, or else the whole of it (as plain text: its first line). `number`, only where all accepted answers are
    numbers: the last number of the reply is one of them by value.
    """
    return open_asking("exact", options, parse_exact, _judge_of, MAX_NEW_TOKENS)


def parse_gsm8k(record: Mapping[str, Any]) -> Problem:
    question, answer = (_text(record, key) for key in ("question", "answer"))
    if not (found := re.search(r"####\s*(.+?)\s*$", answer)) or _as_number(found[1]) is None:
        raise LineError('`answer` does not end in a line "#### number"')
    conversation = Conversation([{"role": "user", "content": question}])
    return Problem("", conversation, gold=found[1], solution=_CALCULATOR.sub("", answer))


def parse_exact(record: Mapping[str, Any]) -> Problem:
    """A question in `question` or `prompt` (a text), `conversations` or `messages`; `answer` or `gt` is what is right.

    That is a text, a number or a list of accepted ones. Where a conversation ends with the assistant's message, that is
    the solution that examples show, and is not asked.
    """
    key = next((key for key in ("conversations", "messages", "question", "prompt") if record.get(key)), "")
    if not key:
        raise LineError("lacks `question`, `prompt`, `conversations` or `messages`")
    accepted = _accepted(record)
    if isinstance(record[key], str):
        return Problem("", Conversation([{"role": "user", "content": _text(record, key)}]), accepted, accepted[0])
    conversation = read_messages(record[key], key)
    if conversation.tools or record.get("tools"):
        raise LineError("has `tools`: what a model calls is scored by --task toolcall")
    messages, solution = list(conversation.messages), accepted[0]
    if messages[-1]["role"] == "assistant":
        solution = messages.pop()["content"].strip() or solution
    if not messages or messages[-1]["role"] != "user":
        raise LineError(f"`{key}` has no question of the user at its end")
    return Problem("", Conversation(messages), accepted, solution)


def judge_gsm8k(problem: Problem, reply: Reply) -> dict[str, float]:
    """exact_match of both filters, as lm-eval normalises it: without commas, dollar signs and a full stop."""
    strict = _STRICT.findall(reply.text)
    flexible = [amount or number for amount, number in _FLEXIBLE.findall(reply.text)]
    gold = _bare(problem.gold)
    return {
        "strict": float(bool(strict) and _bare(strict[0]) == gold),
        "flexible": float(bool(flexible) and _bare(flexible[-1]) == gold),
    }


def final_answer(reply: Reply) -> str:
    """What of a reply is compared."""
    _, mark, after = reply.text.rpartition(_MARK)
    if mark:
        return after.strip().partition("\n")[0]
    return reply.text.partition("\n")[0] if reply.plain else reply.text


def _judge_of(problems: Sequence[Problem]) -> Judge:
    with_numbers = all(_as_number(text) is not None for problem in problems for text in problem.gold)

    def scores(problem: Problem, reply: Reply) -> dict[str, float]:
        found = {"exact": float(is_correct(final_answer(reply), {"gt": problem.gold}))}
        if with_numbers:
            numbers = _NUMBER.findall(unicodedata.normalize("NFKC", reply.text))
            last = _as_number(numbers[-1]) if numbers else None
            found["number"] = float(last is not None and last in map(_as_number, problem.gold))
        return found

    return Judge(scores, "exact")


def _accepted(record: Mapping[str, Any]) -> list[str]:
    """`gt`, else `answer`: what is accepted, as texts."""
    key = "gt" if record.get("gt") else "answer"
    if record.get(key) in (None, "", []):
        raise LineError("lacks `answer` (a text or a list of accepted ones)")
    value = record[key]
    values = value if isinstance(value, list) else [value]
    texts = [str(v) if isinstance(v, int | float) and not isinstance(v, bool) else v for v in values]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise LineError(f"`{key}` is not a text, a number or a list of these, or one of them is empty")
    return texts


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if value is None:
        raise LineError(f"lacks `{key}`, has {', '.join(f'`{name[:20]}`' for name in list(record)[:5]) or 'nothing'}")
    if not isinstance(value, str) or not value.strip():
        raise LineError(f"`{key}` is not a text, or empty")
    check_text(value, key)
    return value


def _bare(number: str) -> str:
    return re.sub(r"\.$", "", number.strip().replace(",", "").replace("$", "")).lower()


def _as_number(text: str) -> Decimal | None:
    bare = _bare(unicodedata.normalize("NFKC", text))
    return Decimal(bare) if re.fullmatch(r"[-+]?\d+(\.\d+)?|[-+]?\.\d+", bare) else None
