"""Questions that the web page suggests: those that the model is known to answer well."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ValidationError

from minimind_jax.errors import UserError, first_line

LANGUAGES = ("zh", "en")
_MIN_ACCURACY = 0.75  # of a family in a language
_MOST = 4  # a language
_ADVICE = "give what `python evaluate.py --task questions --json FILE` writes"


class _Message(BaseModel):
    role: str
    content: str | None = None


class _Answer(BaseModel):
    family: str
    language: str
    messages: list[_Message]
    correct: bool


class _Answers(BaseModel):
    answers: list[_Answer]


def read_suggestions(path: Path) -> dict[str, list[str]]:
    """Language -> questions, from a file of `evaluate.py`'s answers.

    At most four a language, each of another family: one that the model has answered right, of the families that it
    answers best, three quarters at least. Only single questions count, as the page has one line for them.

    Raises:
      UserError: there is no such file, or it is of another kind.
    """
    try:
        answers = _Answers.model_validate(json.loads(path.read_text("utf-8"))).answers
    except OSError as e:
        raise UserError(f"--suggestions {path} cannot be read: {e.strerror}; {_ADVICE}") from None
    except ValidationError as e:
        error = e.errors()[0]
        field = ".".join(map(str, error["loc"]))
        raise UserError(f"--suggestions {path}: `{field}`: {error['msg'].lower()}; {_ADVICE}") from None
    except (ValueError, RecursionError) as e:  # not UTF-8, not JSON
        raise UserError(f"--suggestions {path} is not JSON: {first_line(e)}; {_ADVICE}") from None
    return {language: _suggested([a for a in answers if a.language == language]) for language in LANGUAGES}


def _suggested(answers: list[_Answer]) -> list[str]:
    families: Mapping[str, list[_Answer]] = defaultdict(list)
    for answer in answers:
        families[answer.family].append(answer)
    accuracy = {family: sum(a.correct for a in own) / len(own) for family, own in families.items()}
    best = sorted((family for family in families if accuracy[family] >= _MIN_ACCURACY), key=lambda f: -accuracy[f])
    found = (next((a for a in families[family] if a.correct and len(a.messages) == 1), None) for family in best)
    return [answer.messages[0].content or "" for answer in found if answer is not None][:_MOST]
