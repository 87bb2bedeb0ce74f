"""Tasks that models answer by writing: prompts, with and without the chat template, and judging what comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minimind_jax.chat import AnswerParser, Content, Conversation, ConversationError, ToolCall, chat_template
from minimind_jax.data.chat import as_line_error
from minimind_jax.data.jsonl import BadLine, parse_object, read_jsonl
from minimind_jax.errors import UserError
from minimind_jax.evaluation.generation import Answer, pass_at_k, write_answers
from minimind_jax.evaluation.result import TaskResult
from minimind_jax.evaluation.task import TaskOptions, spread
from minimind_jax.files import locate
from minimind_jax.inference import Options
from minimind_jax.workdir import LoadedModel

_PLAIN_STOP = "Question:"  # a base model goes on with the next one
_GROUP_KEYS = ("group", "subject", "family", "category")


@dataclass(frozen=True)
class Problem:
    """What is asked, and what is right."""

    id: str
    conversation: Conversation  # its last message is the user's, or a tool's result
    gold: Any  # JSON
    solution: str = ""  # as a solved example shows it
    group: str = ""
    where: str = ""  # FILE:LINE

    @property
    def question(self) -> str:
        """The last message's text."""
        return str(self.conversation.messages[-1]["content"])


@dataclass(frozen=True)
class Reply:
    """An answer taken apart: its content without thoughts, its tool calls, and how it was asked for."""

    text: str
    calls: Sequence[ToolCall]
    plain: bool
    answer: Answer


@dataclass(frozen=True)
class Judge:
    """How replies are scored.

    Attributes:
      scores: metric -> score in [0, 1] of one reply; the same metrics for all problems.
      main: one of the metrics.
      describe: what all problems and their replies say together, for `TaskResult.details`.
    """

    scores: Callable[[Problem, Reply], Mapping[str, float]]
    main: str
    describe: Callable[[Sequence[Problem], Sequence[Sequence[Reply]]], Mapping[str, Any]] = lambda *_: {}


@dataclass(frozen=True)
class AskingTask:
    """Problems, solved examples for them, and their judge."""

    name: str
    problems: Sequence[Problem]
    shots: Sequence[Problem]
    judge: Judge
    options: TaskOptions
    max_new_tokens: int
    of: int  # problems before --limit

    def run(self, model: LoadedModel) -> TaskResult:
        """Asks all problems, on the engine in float32; `options.samples` answers to each.

        The scores of a problem are means over its answers; pass@k is of the main metric.

        Raises:
          UserError: the chat template refuses a conversation, or generation fails.
        """
        options, plain = self.options, self.options.chat is False
        prompts = [self._prompt(model, problem, plain) for problem in self.problems]
        generation = Options(
            max_new_tokens=options.max_new_tokens or self.max_new_tokens,
            temperature=options.temperature,
            stop=(_PLAIN_STOP,) if plain else (),
        )
        what = f"{self.name}: answers of {model.path}"
        written = write_answers(model, [tokens for tokens, _ in prompts], generation, options.samples, what)
        replies = [
            [_take_apart(answer, problem, in_thought, plain) for answer in answers]
            for problem, (_, in_thought), answers in zip(self.problems, prompts, written, strict=True)
        ]
        return self._result(replies, generation)

    def _prompt(self, model: LoadedModel, problem: Problem, plain: bool) -> tuple[list[int], bool]:
        """Token ids, and whether they end within an open thought."""
        if plain:
            solved = "".join(f"{_plain(shot)} {shot.solution}\n\n" for shot in self.shots)
            return [model.tokenizer.bos_id, *model.tokenizer.encode(solved + _plain(problem))], False
        messages = list(problem.conversation.messages)
        n_system = int(messages[0]["role"] == "system")
        for shot in reversed(self.shots):
            messages[n_system:n_system] = [
                *shot.conversation.messages,
                {"role": "assistant", "content": shot.solution},
            ]
        try:
            conversation = Conversation(messages, problem.conversation.tools)
            prompt = chat_template(model.tokenizer).prompt(conversation)
        except ConversationError as e:
            raise UserError(f"{problem.where}: {e}") from None
        return prompt.tokens, prompt.in_thought

    def _result(self, replies: Sequence[Sequence[Reply]], generation: Options) -> TaskResult:
        options, judge = self.options, self.judge
        judged = [
            [judge.scores(problem, reply) for reply in of_problem]
            for problem, of_problem in zip(self.problems, replies, strict=True)
        ]
        scores = {
            metric: np.array([np.mean([one[metric] for one in of_problem]) for of_problem in judged])
            for metric in judged[0][0]
        }
        if options.samples > 1:
            right = [sum(one[judge.main] >= 1 for one in of_problem) for of_problem in judged]
            for k in options.pass_at or sorted({1, options.samples}):
                scores[f"pass@{k}"] = np.array([pass_at_k(options.samples, n, k) for n in right])
        records = [
            {
                "id": problem.id,
                "prompt": problem.question,
                "reply": of_problem[0].answer.text,
                "gold": problem.gold,
                "scores": {metric: float(values[i]) for metric, values in scores.items()},
                "answers": [
                    {"text": r.answer.text, "tokens": r.answer.tokens, "finish": r.answer.reason, "scores": dict(s)}
                    for r, s in zip(of_problem, of_judge, strict=True)
                ],
            }
            for i, (problem, of_problem, of_judge) in enumerate(zip(self.problems, replies, judged, strict=True))
        ]
        answers = [reply.answer for of_problem in replies for reply in of_problem]
        cut, no_room = (sum(a.reason == reason for a in answers) for reason in ("length", "no room"))
        notes = []
        if cut:
            notes.append(f"{cut} of {len(answers)} answers were cut, most at {generation.max_new_tokens} tokens")
        if no_room:
            notes.append(f"{no_room} of {len(answers)} prompts fill the model's context: they count as wrong")
        details = {
            "chat": options.chat is not False,
            "shots": len(self.shots),
            "samples": options.samples,
            "temperature": options.temperature,
            "max_new_tokens": generation.max_new_tokens,
            "cut": cut / len(answers),
            "no_room": no_room / len(answers),
            "tokens": float(np.mean([a.tokens for a in answers])),
            **judge.describe(self.problems, replies),
            "of": self.of,
            "notes": notes,
        }
        groups = [problem.group for problem in self.problems]
        return TaskResult(self.name, scores, {}, judge.main, groups, records, details)


def open_asking(
    name: str,
    options: TaskOptions,
    parse: Callable[[dict[str, Any]], Problem],
    judge: Callable[[Sequence[Problem]], Judge],
    max_new_tokens: int,
) -> AskingTask:
    """Reads the problems of `options.path`.

    The solved examples are the first `options.shots` problems of `options.shots_from`, or else of the same file: those
    are not asked then.

    Args:
      parse: a record as a problem; `id`, `group` and `where` are added. Raises LineError or ConversationError.

    Raises:
      UserError: names the line that is no problem, or the option that does not fit.
    """
    assert options.path is not None
    problems, shots = read_problems(options.path, parse), []
    if options.shots:
        source = options.shots_from or options.path
        solved = read_problems(source, parse) if options.shots_from else problems
        shots = list(solved[: options.shots])
        if len(shots) < options.shots or (not options.shots_from and len(problems) == len(shots)):
            rest = "" if options.shots_from else ", and those that are shown are not asked"
            raise UserError(f"{source} has {len(solved)} problems, too few for --shots {options.shots}{rest}")
        if not options.shots_from:
            problems = problems[options.shots :]
    if options.chat is False:
        for problem in (*shots, *problems):
            if len(problem.conversation.messages) != 1:
                raise UserError(
                    f"{problem.where} is a conversation of {len(problem.conversation.messages)} messages, which "
                    "cannot be asked as plain text: leave --plain away"
                )
    chosen = spread(problems, options.limit)
    return AskingTask(name, chosen, shots, judge(chosen), options, max_new_tokens, len(problems))


def read_problems(path: Path, parse: Callable[[dict[str, Any]], Problem]) -> list[Problem]:
    """All records of a file. Raises UserError naming the first that is no problem."""

    def parse_line(line: bytes) -> Problem:
        record = parse_object(line)
        try:
            problem = parse(record)
        except ConversationError as e:
            raise as_line_error(e) from None
        group = next((v for key in _GROUP_KEYS if isinstance(v := record.get(key), str)), "")
        named = record.get("id")
        return dataclasses.replace(problem, id=str(named) if isinstance(named, str | int) else "", group=group)

    problems = []
    for number, problem in read_jsonl(path, parse_line):
        if isinstance(problem, BadLine):
            raise UserError(f"{locate(path, problem.line)}: {problem.reason}")
        problems.append(dataclasses.replace(problem, id=problem.id or str(number), where=locate(path, number)))
    if not problems:
        raise UserError(f"{path} is empty: there is nothing to ask")
    return problems


def _plain(problem: Problem) -> str:
    return f"Question: {problem.question}\nAnswer:"


def _take_apart(answer: Answer, problem: Problem, in_thought: bool, plain: bool) -> Reply:
    if plain:
        return Reply(answer.text.strip(), (), True, answer)
    parser = AnswerParser(in_thought, with_tools=problem.conversation.tools is not None)
    parts = parser.push(answer.text) + parser.finish()
    text = "".join(part.text for part in parts if isinstance(part, Content))
    return Reply(text.strip(), [part for part in parts if isinstance(part, ToolCall)], False, answer)
