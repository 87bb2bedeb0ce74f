"""Records of published benchmarks as questions: their fields upstream, the prompts lm-eval's (0.4.13) to the letter."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minimind_jax.data.jsonl import LineError
from minimind_jax.evaluation.benchmarks.item import (
    LETTERS,
    ChoiceItem,
    label_field,
    no_answer,
    number_field,
    text_field,
    texts_field,
)

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Form:
    """How a benchmark's records read.

    Attributes:
      parse: a record as (prompt, choices, gold). Raises LineError.
      main: the metric that is usually quoted.
      labels: whether upstream keeps the answers in a file beside, valid-labels.lst of valid.jsonl.
    """

    parse: Callable[[Record], tuple[str, Sequence[str], int]]
    main: str = "acc"
    labels: bool = False


def read_item(form: Form, record: Record, number: int) -> ChoiceItem:
    """A record, the `number`th of its file. Raises LineError."""
    prompt, choices, gold = form.parse(record)
    name = next((str(record[key]) for key in ("id", "qID", "ind") if isinstance(record.get(key), int | str)), "")
    group = record.get("subject")
    return ChoiceItem(name or str(number), prompt, tuple(choices), gold, group if isinstance(group, str) else "")


def _arc(record: Record) -> tuple[str, Sequence[str], int]:
    stem, texts, gold = _labelled(record, "question")
    return f"Question: {stem}\nAnswer:", texts, gold


def _openbookqa(record: Record) -> tuple[str, Sequence[str], int]:
    return _labelled(record, "question_stem")


def _labelled(record: Record, stem: str) -> tuple[str, Sequence[str], int]:
    """As on Hugging Face, choices {"text": [...], "label": [...]}; or AllenAI's {"question": {"stem", "choices"}}."""
    own, where = record, ""
    if isinstance(record.get("question"), dict):
        own, where, stem = record["question"], "question.", "stem"
    question = text_field(own, stem, where)
    choices = own.get("choices")
    if isinstance(choices, dict):
        texts, labels = choices.get("text"), choices.get("label")
    elif isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices):
        texts, labels = ([choice.get(field) for choice in choices] for field in ("text", "label"))
    else:
        raise LineError(f"`{where}choices` holds no choices with `text` and `label`")
    texts = texts_field(texts, f"{where}choices.text")
    if not isinstance(labels, list) or len(labels) != len(texts) or not all(isinstance(one, str) for one in labels):
        raise LineError(f"`{where}choices.label` is not a list of {len(texts)} labels")
    if len(set(labels)) < len(labels):
        raise LineError(f"`{where}choices.label` names two choices alike: {', '.join(labels)}")
    return question, texts, label_field(record, "answerKey", labels)


def _hellaswag(record: Record) -> tuple[str, Sequence[str], int]:
    activity = text_field(record, "activity_label", blank=True)
    start, end = text_field(record, "ctx_a", blank=True), text_field(record, "ctx_b", blank=True)
    endings = [_without_brackets(text) for text in texts_field(record.get("endings"), "endings")]
    prompt = _without_brackets(f"{activity}: {start} {end.capitalize()}")
    return prompt, texts_field(endings, "endings"), number_field(record, "label", len(endings))


def _without_brackets(text: str) -> str:
    """WikiHow's marks taken out of a HellaSwag text."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _piqa(record: Record) -> tuple[str, Sequence[str], int]:
    choices = [text_field(record, field) for field in ("sol1", "sol2")]
    return f"Question: {text_field(record, 'goal')}\nAnswer:", choices, number_field(record, "label", 2)


def _siqa(record: Record) -> tuple[str, Sequence[str], int]:
    choices = [text_field(record, field) for field in ("answerA", "answerB", "answerC")]
    prompt = f"Q: {text_field(record, 'context')} {text_field(record, 'question')}\nA:"
    return prompt, choices, number_field(record, "label", 3, first=1)


def _plain(record: Record) -> tuple[str, Sequence[str], int]:
    """`question`, or `prompt` or `query` as it stands; `choices`; `answer` (or `gold`): number, letter or text."""
    field = next((field for field in ("prompt", "query") if field in record), "question")
    text = text_field(record, field)
    choices = texts_field(record.get("choices"), "choices")
    if len(set(choices)) < len(choices):
        twice = next(choice for choice in choices if choices.count(choice) > 1)
        raise LineError(f"`choices` has {twice!r:.40} twice: which of them is chosen could not be told")
    gold = _plain_gold(record, "gold" if "answer" not in record and "gold" in record else "answer", choices)
    return (f"Question: {text}\nAnswer:" if field == "question" else text), choices, gold


def _plain_gold(record: Record, field: str, choices: Sequence[str]) -> int:
    value = record.get(field)
    if value is None or value == "":
        raise no_answer(record, field)
    if isinstance(value, int) and not isinstance(value, bool):
        return number_field(record, field, len(choices))
    letters = LETTERS[: len(choices)]
    if isinstance(value, str):
        by_text = [i for i, choice in enumerate(choices) if choice == value]
        by_letter = [letters.index(value)] if len(value) == 1 and value in letters else []
        if len({*by_text, *by_letter}) == 2:
            raise LineError(f"`{field}` is {value!r}, which is one choice and the letter of another: give its number")
        if by_text or by_letter:
            return (by_text or by_letter)[0]
    raise LineError(
        f"`{field}` is {value!r:.40}: neither one of the choices, nor a letter from A to {letters[-1]}, nor a number "
        f"from 0 to {len(choices) - 1}"
    )


FORMS: Mapping[str, Form] = {
    "arc_easy": Form(_arc),
    "arc_challenge": Form(_arc, main="acc_norm"),
    "hellaswag": Form(_hellaswag, main="acc_norm"),
    "piqa": Form(_piqa, main="acc_norm", labels=True),
    "openbookqa": Form(_openbookqa, main="acc_norm"),
    "siqa": Form(_siqa, labels=True),
    "choices": Form(_plain),
}
