"""Held-out questions with verifiable answers: how many a model answers right, by family and language.

The questions.jsonl of `python -m minimind_jax.data.generate`; a reply counts where `is_correct` says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind_jax.chat import Conversation, ConversationError, chat_template, read_messages
from minimind_jax.data.generate import LANGUAGES, is_correct, plain_prompt
from minimind_jax.data.jsonl import BadLine, LineError, parse_object, read_jsonl
from minimind_jax.errors import UserError
from minimind_jax.files import locate
from minimind_jax.inference import Options, generate, generate_text
from minimind_jax.inference.devices import local_mesh
from minimind_jax.workdir import LoadedModel

MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class Question:
    """One record of questions.jsonl."""

    id: str
    family: str
    language: Any  # one of LANGUAGES
    conversation: Conversation  # the last message is the user's
    answer: str
    gt: list[str]  # all accepted answers


@dataclass(frozen=True)
class Count:
    correct: int
    questions: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.questions

    def to_dict(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy, "correct": self.correct, "questions": self.questions}


@dataclass(frozen=True)
class QuestionsScore:
    """Replies to questions and which of them are right, all in the file's order."""

    questions: Sequence[Question]
    replies: Sequence[str]
    is_correct: Sequence[bool]

    @property
    def families(self) -> list[str]:
        return list(dict.fromkeys(question.family for question in self.questions))

    @property
    def languages(self) -> list[str]:
        return [name for name in LANGUAGES if self.count(language=name)]

    def count(self, family: str = "", language: str = "") -> Count | None:
        """Of this family and language, "" = all of them; None where there is no such question."""
        right = [
            is_right
            for question, is_right in zip(self.questions, self.is_correct, strict=True)
            if family in ("", question.family) and language in ("", question.language)
        ]
        return Count(sum(right), len(right)) if right else None

    def to_dict(self) -> dict[str, Any]:
        """accuracy, correct and questions: of all, of each of `languages`, of `families` by language."""

        def by_language(family: str) -> Iterator[tuple[str, dict[str, Any]]]:
            for language in self.languages:
                if count := self.count(family, language):
                    yield language, count.to_dict()

        families = {family: dict(by_language(family)) for family in self.families}
        total = Count(sum(self.is_correct), len(self.questions))
        return {**total.to_dict(), "languages": dict(by_language("")), "families": families}

    @property
    def answers(self) -> list[dict[str, Any]]:
        """Every question with its reply, as JSON: what `serve.py --suggestions` reads."""
        return [
            {
                "id": question.id,
                "family": question.family,
                "language": question.language,
                "messages": list(question.conversation.messages),
                "gt": question.gt,
                "reply": reply,
                "correct": bool(is_right),
            }
            for question, reply, is_right in zip(self.questions, self.replies, self.is_correct, strict=True)
        ]


def ask(model: LoadedModel, path: Path, *, plain: bool = False, max_new_tokens: int = MAX_NEW_TOKENS) -> QuestionsScore:
    """Asks all questions of a file; greedy, float32, on all devices of this process.

    Args:
      plain: as a pretraining document goes ("Question: ...\\nAnswer:"), and only the first line of what follows
        counts; else as a chat, without thinking.

    Raises:
      UserError: no such file, a line that is no question, no question at all, or what generation raises.
    """
    return ask_questions(model, read_questions(path), plain, max_new_tokens)


def ask_questions(
    model: LoadedModel, questions: Sequence[Question], plain: bool, max_new_tokens: int = MAX_NEW_TOKENS
) -> QuestionsScore:
    """`ask` of questions that were read."""
    options = Options(max_new_tokens=max_new_tokens)
    mesh = local_mesh()
    if plain:
        prompts = [_plain(question) for question in questions]
        # The colon is left to the model: a tokenizer may join it with the answer's first character, and then a text
        # that ends in a colon is one that goes on with another answer.
        texts = generate_text(model, [prompt[:-1] for prompt in prompts], options, mesh=mesh)
        replies = [text.removeprefix(prompt[-1]) for prompt, text in zip(prompts, texts, strict=True)]
        return score_replies(questions, [reply.split("\n")[0] for reply in replies])
    template = chat_template(model.tokenizer)
    chats = [template.prompt(question.conversation).tokens for question in questions]
    eos_id = model.tokenizer.eos_id
    made = generate(model.config, model.params, chats, options, eos_id=eos_id, mesh=mesh)
    return score_replies(questions, [model.tokenizer.decode(tokens) for tokens in made])


def score_replies(questions: Sequence[Question], replies: Sequence[str]) -> QuestionsScore:
    """Judges one reply a question."""
    right = [is_correct(reply, {"gt": question.gt}) for question, reply in zip(questions, replies, strict=True)]
    return QuestionsScore(questions, [reply.strip() for reply in replies], right)


def read_questions(path: Path) -> list[Question]:
    """All questions of a file. Raises UserError naming the first line that is none."""
    questions = []
    for _, record in read_jsonl(path, _parse):
        if isinstance(record, BadLine):
            raise UserError(
                f"{locate(path, record.line)} is no question: {record.reason}. Give a questions.jsonl as "
                "`python -m minimind_jax.data.generate` writes it"
            )
        questions.append(record)
    if not questions:
        raise UserError(f"{path} has no question")
    return questions


def _parse(line: bytes) -> Question:
    record = parse_object(line)
    strings: dict[str, str] = {}
    for field in ("id", "family", "language", "answer"):
        value = record.get(field)
        if not isinstance(value, str) or not value:
            raise LineError(_not(record, field, "a string"))
        strings[field] = value
    if strings["language"] not in LANGUAGES:
        raise LineError(f"`language` is {strings['language'][:20]!r}, not one of {', '.join(LANGUAGES)}")
    gt = record.get("gt")
    if not isinstance(gt, list) or not gt or not all(isinstance(text, str) for text in gt):
        raise LineError(_not(record, "gt", "a list of accepted answers"))
    return Question(
        strings["id"], strings["family"], strings["language"], _conversation(record), answer=strings["answer"], gt=gt
    )


def _conversation(record: dict[str, Any]) -> Conversation:
    if not isinstance(record.get("conversations"), list):
        raise LineError(_not(record, "conversations", "a list of messages"))
    try:
        conversation = read_messages(record["conversations"], "conversations")
    except ConversationError as e:
        raise LineError(str(e)) from None
    if not conversation.messages or conversation.messages[-1]["role"] != "user":
        raise LineError("`conversations` does not end with the user's question")
    return conversation


def _not(record: dict[str, Any], field: str, wanted: str) -> str:
    return f"`{field}` is not {wanted}, or empty" if field in record else f"lacks `{field}`"


def _plain(question: Question) -> str:
    messages = question.conversation.messages
    if len(messages) != 1:
        raise UserError(
            f"question {question.id} is a conversation of {len(messages)} messages, which cannot be asked "
            "as plain text: leave --plain away"
        )
    return plain_prompt(question.family, question.language, messages[0]["content"])
