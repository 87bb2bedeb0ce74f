"""The generated questions as a task, so that models can be compared question by question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minimind_jax.evaluation.questions import Question, QuestionsScore, ask_questions, read_questions, score_replies
from minimind_jax.evaluation.result import TaskResult
from minimind_jax.evaluation.task import TaskOptions, spread
from minimind_jax.workdir import LoadedModel


@dataclass(frozen=True)
class QuestionsTask:
    """`questions.ask`; groups are family and language."""

    questions: Sequence[Question]
    plain: bool
    of: int  # questions before --limit

    @property
    def name(self) -> str:
        return "questions"

    def run(self, model: LoadedModel) -> TaskResult:
        """Raises UserError as `questions.ask`. Details are `QuestionsScore.to_dict`."""
        score = ask_questions(model, self.questions, self.plain)
        right = np.array(score.is_correct, np.float64)
        records = [
            {
                "id": question.id,
                "prompt": question.conversation.messages[-1]["content"],
                "reply": reply,
                "gold": question.gt,
                "scores": {"exact": float(is_right)},
            }
            for question, reply, is_right in zip(self.questions, score.replies, right, strict=True)
        ]
        groups = [f"{question.family} {question.language}" for question in self.questions]
        details = {**score.to_dict(), "plain": self.plain}
        if self.of > len(self.questions):
            details["of"] = self.of
        return TaskResult(self.name, {"exact": right}, {}, "exact", groups, records, details)

    def score(self, result: TaskResult) -> QuestionsScore:
        """What a result of this task says, for `questions_table`."""
        return score_replies(self.questions, [record["reply"] for record in result.records])


def open_questions(options: TaskOptions) -> QuestionsTask:
    """Raises UserError naming the first line that is no question."""
    assert options.path is not None
    questions = read_questions(options.path)
    return QuestionsTask(spread(questions, options.limit), options.chat is False, len(questions))
