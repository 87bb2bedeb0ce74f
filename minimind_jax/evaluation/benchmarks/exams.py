"""C-Eval and CMMLU as they are published: directories of csv files, one a subject and split."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from minimind_jax.data.jsonl import LineError
from minimind_jax.errors import UserError
from minimind_jax.evaluation.benchmarks.item import ChoiceItem, check_text
from minimind_jax.evaluation.benchmarks.subjects import CEVAL, CMMLU

_LETTERS = ("A", "B", "C", "D")
_SPLIT = re.compile(r"_(dev|val|test)$")


@dataclass(frozen=True)
class Exam:
    """How an exam's directory and prompts go; the descriptions are lm-eval's (0.4.13).

    Attributes:
      split: the directory of the questions that are scored; `dev` has the examples.
      subjects: what descriptions call them.
    """

    split: str
    subjects: Mapping[str, str]
    description: str

    def describe(self, subject: str) -> str:
        """What precedes the examples and the question, with a blank line at its end."""
        return self.description.format(self.subjects.get(subject, subject.replace("_", " "))) + "\n\n"


EXAMS: Mapping[str, Exam] = {
    "ceval": Exam("val", CEVAL, "以下是中国关于{}的单项选择题，请选出其中的正确答案。"),
    "cmmlu": Exam("test", CMMLU, "以下是关于{}的单项选择题，请直接给出正确答案的选项。"),
}


def read_exam(path: Path, exam: Exam) -> list[ChoiceItem]:
    """All questions of a directory, subject by subject, or of one csv file.

    Args:
      path: the directory that is published, or the one of its split, or a file.

    Raises:
      UserError: no csv file, or a row that is no question with an answer: the first of them.
    """
    return [item for file in _files(path, exam.split) for item in _read_subject(file)]


def read_examples(path: Path) -> dict[str, list[ChoiceItem]]:
    """The examples by subject. Raises UserError as `read_exam`."""
    return {_subject(file): _read_subject(file) for file in _files(path, "dev")}


def examples_beside(path: Path) -> Path | None:
    """The directory `dev` of a published directory, of one of its splits or of a file there; None if there is none."""
    for directory in [path, path.parent, path.parent.parent][: 3 if path.is_file() else 2]:
        if (directory / "dev").is_dir():
            return directory / "dev"
    return None


def _files(path: Path, split: str) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} is neither a directory of csv files nor a csv file")
    directory = path / split if (path / split).is_dir() else path
    files = sorted(file for file in directory.glob("*.csv") if not file.name.startswith("."))
    if not files:
        raise UserError(f"{directory} has no csv file: name the directory that holds {split}/SUBJECT.csv")
    return files


def _subject(file: Path) -> str:
    return _SPLIT.sub("", file.stem)


def _read_subject(file: Path) -> list[ChoiceItem]:
    items, subject = [], _subject(file)
    for line, row in _rows(file):
        try:
            items.append(_item(row, subject))
        except LineError as e:
            raise UserError(f"{file}:{line}: {e}") from None
    if not items:
        raise UserError(f"{file} has no question")
    return items


def _item(row: Mapping[str, str], subject: str) -> ChoiceItem:
    question, answer = check_text(row["question"], "question").strip(), row["answer"].strip()
    if not answer:
        raise LineError("`answer` is empty")
    if answer not in _LETTERS:
        raise LineError(f"`answer` is {answer!r:.40}, not one of {', '.join(_LETTERS)}")
    options = "".join(f"{letter}. {row[letter]}\n" for letter in _LETTERS)
    return ChoiceItem(
        f"{subject}/{row['id']}", f"{question}\n{options}答案：", _LETTERS, _LETTERS.index(answer), subject
    )


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row) with the columns id, question, A, B, C, D and answer; the line is the one where the row begins."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened, strict=True)
            columns = [_column(name) for name in next(reader, [])]
            missing = [name for name in ("question", *_LETTERS, "answer") if name not in columns]
            if missing:
                advice = ": the test split of C-Eval has no answers, take val" if missing == ["answer"] else ""
                raise UserError(f"{file}:1: lacks the columns {', '.join(missing)}{advice}")
            line = reader.line_num + 1
            for number, row in enumerate(reader):
                if row and len(row) != len(columns):
                    raise UserError(f"{file}:{line}: has {len(row)} columns, the header {len(columns)}")
                if row:
                    yield line, {"id": str(number), **dict(zip(columns, row, strict=True))}
                line = reader.line_num + 1
    except csv.Error as e:
        raise UserError(f"{file}:{reader.line_num}: no csv ({e})") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{file} is not UTF-8 (byte {e.start + 1})") from None
    except OSError as e:
        raise UserError(f"{file} cannot be read: {e.strerror or e}") from None


def _column(name: str) -> str:
    """C-Eval writes `question`, CMMLU `Question` and gives the number no name."""
    name = name.strip()
    return name if name in _LETTERS else name.lower() or "id"
