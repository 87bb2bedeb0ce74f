"""A `QuestionsScore` as text: accuracy by family and language, and a few replies to look at."""

from __future__ import annotations

from minimind_jax.evaluation.questions import Count, QuestionsScore

_N_EXAMPLES = 4
_SHOWN = 60  # characters of a question or a reply


def questions_table(score: QuestionsScore) -> str:
    """Rows are families and their total, columns languages and all of them, in percent; then up to 4 replies."""
    columns = [*score.languages, ""]  # "" = all of them, as "" is the total of the families
    lines = [f"{'exact answers':14}" + "".join(f"{name or 'all':>9}" for name in columns) + f"{'questions':>11}"]
    for family in (*score.families, ""):
        cells = "".join(f"{_percent(score.count(family, language)):>9}" for language in columns)
        lines.append(f"{family or 'total':14}{cells}{_n_questions(score.count(family)):>11}")
    return "\n".join([*lines, *(_example(score, i) for i in _pick_examples(score))])


def _n_questions(count: Count | None) -> int:
    return count.questions if count else 0


def _percent(count: Count | None) -> str:
    return f"{100 * count.accuracy:.1f} %" if count else "-"


def _pick_examples(score: QuestionsScore) -> list[int]:
    """Right and wrong replies, half and half where there are enough of both, spread over the file."""
    right, wrong = ([i for i, is_right in enumerate(score.is_correct) if is_right == which] for which in (True, False))
    n_right = min(len(right), max(_N_EXAMPLES // 2, _N_EXAMPLES - len(wrong)))
    n_wrong = min(len(wrong), _N_EXAMPLES - n_right)
    return [*_spread(right, n_right), *_spread(wrong, n_wrong)]


def _spread(indices: list[int], n: int) -> list[int]:
    return [indices[(2 * k + 1) * len(indices) // (2 * n)] for k in range(n)]


def _example(score: QuestionsScore, i: int) -> str:
    question, reply = score.questions[i], score.replies[i]
    verdict = "right" if score.is_correct[i] else f"wrong, {_clip(question.answer)!r} is right"
    return f"  {_clip(question.conversation.messages[-1]['content'])} -> {_clip(reply)!r} ({verdict})"


def _clip(text: str) -> str:
    """One line; of a long text its end, where a story's question stands."""
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"...{text[-_SHOWN:]}"
