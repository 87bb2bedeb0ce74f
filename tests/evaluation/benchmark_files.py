"""Writes benchmarks in the layouts in which they are published, with made-up questions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

WORDS = ["water", "stone", "light", "温度", "plant", "电流", "energy", "moon", "river", "salt", "重力", "seed"]


def lines(path: Path, records: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return path


def _phrase(rng: np.random.Generator, n: int) -> str:
    return " ".join(rng.choice(WORDS, n))


def exam_rows(n: int, seed: int) -> list[list[str]]:
    """question, A, B, C, D, answer; with commas, quotes, line breaks and spaces as the published ones have them."""
    rng = np.random.default_rng(seed)
    rows = [
        [f"{i}、{_phrase(rng, 5)}____。", *(_phrase(rng, k) for k in (1, 2, 3, 1)), "ABCD"[i % 4]] for i in range(n)
    ]
    rows[0][0] = ' 下列说法，"正确"的是,\n第二行 '
    return rows


def write_ceval(root: Path, subjects: dict[str, int], dev: int = 5, explanation: bool = True) -> Path:
    for seed, (subject, n) in enumerate(subjects.items()):
        for split, rows, extra in (
            ("val", exam_rows(n, seed), []),
            ("dev", exam_rows(dev, 100 + seed), ["解析，略"] if explanation else []),
        ):
            header = ["id", "question", "A", "B", "C", "D", "answer", *(["explanation"] if extra else [])]
            _csv(
                root / split / f"{subject}_{split}.csv", header, [[str(i), *row, *extra] for i, row in enumerate(rows)]
            )
        rows = [[str(i), *row[:-1]] for i, row in enumerate(exam_rows(3, 200 + seed))]
        _csv(root / "test" / f"{subject}_test.csv", ["id", "question", "A", "B", "C", "D"], rows)
    return root


def write_cmmlu(root: Path, subjects: dict[str, int], dev: int = 5) -> Path:
    for seed, (subject, n) in enumerate(subjects.items()):
        for split, rows in (("test", exam_rows(n, seed)), ("dev", exam_rows(dev, 100 + seed))):
            header = ["", "Question", "A", "B", "C", "D", "Answer"]
            _csv(root / split / f"{subject}.csv", header, [[str(i), *row] for i, row in enumerate(rows)], bom=True)
    return root


def _csv(path: Path, header: list[str], rows: list[list[str]], bom: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8-sig" if bom else "utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def arc_records(n: int, seed: int = 0) -> list[dict]:
    """As on Hugging Face; some with numbers as labels, some with three or five choices."""
    rng, records = np.random.default_rng(seed), []
    for i in range(n):
        k = (4, 4, 3, 5)[i % 4]
        labels = list("12345"[:k] if i % 3 == 0 else "ABCDE"[:k])
        texts = [_phrase(rng, int(rng.integers(1, 5))) for _ in range(k)]
        choices = {"text": texts, "label": labels}
        question = f"Which is {_phrase(rng, 4)}?"
        records.append({"id": f"q{i}", "question": question, "choices": choices, "answerKey": labels[i % k]})
    return records


def original(record: dict, stem: str = "question") -> dict:
    """AllenAI's own form of an ARC or OpenBookQA record."""
    pairs = zip(record["choices"]["text"], record["choices"]["label"], strict=True)
    choices = [{"text": text, "label": label} for text, label in pairs]
    return {
        "id": record["id"],
        "question": {"stem": record[stem], "choices": choices},
        "answerKey": record["answerKey"],
    }


def hellaswag_records(n: int) -> list[dict]:
    rng = np.random.default_rng(1)
    return [
        {
            "ind": i,
            "activity_label": "Washing dishes",
            "ctx_a": f"A man is {_phrase(rng, 3)}. [step] He",
            "ctx_b": ["then He turns", ""][i % 2],
            "ctx": "unused",
            "endings": [f"{_phrase(rng, k)} [title] {_phrase(rng, 1)}  [substeps] end." for k in (2, 3, 4, 2)],
            "label": str(i % 4) if i % 3 else i % 4,
        }
        for i in range(n)
    ]


def openbookqa_records(n: int) -> list[dict]:
    return [
        {key: value for key, value in record.items() if key != "question"} | {"question_stem": record["question"][:-1]}
        for record in arc_records(4 * n, seed=2)[::4]
    ]


def piqa_records(n: int) -> list[dict]:
    rng = np.random.default_rng(3)
    return [
        {"goal": f"To {_phrase(rng, 3)},", "sol1": _phrase(rng, 4), "sol2": _phrase(rng, 6), "label": i % 2}
        for i in range(n)
    ]


def siqa_records(n: int) -> list[dict]:
    rng = np.random.default_rng(4)
    return [
        {
            "context": f"Kim saw {_phrase(rng, 3)}.",
            "question": "What does Kim do next?",
            **{f"answer{letter}": _phrase(rng, k) for letter, k in zip("ABC", (2, 4, 3), strict=True)},
            "label": str(1 + i % 3),
        }
        for i in range(n)
    ]
