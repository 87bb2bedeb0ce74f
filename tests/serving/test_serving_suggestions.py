"""Which questions the page suggests, and files that are of another kind."""

import json

import pytest

from minimind_jax.errors import UserError
from minimind_jax.serving import read_suggestions


def answers(*families):
    """Answers of (family, language, right, wrong): the wrong ones first."""
    return [
        {
            "family": family,
            "language": language,
            "messages": [{"role": "user", "content": f"{family} {language} {number}"}],
            "correct": number >= wrong,
        }
        for family, language, right, wrong in families
        for number in range(right + wrong)
    ]


def suggested(tmp_path, answers):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({"accuracy": 0.5, "answers": answers}), "utf-8")
    return read_suggestions(path)


def test_one_right_answer_of_each_family_that_is_answered_well(tmp_path):
    families = answers(
        ("units", "en", 3, 1), ("weekday", "en", 9, 1), ("story", "en", 7, 3), ("story", "zh", 4, 0), ("x", "fr", 1, 0)
    )
    assert suggested(tmp_path, families) == {"zh": ["story zh 0"], "en": ["weekday en 1", "units en 1"]}


def test_four_at_most_the_best_first(tmp_path):
    families = answers(*((f"f{n}", "zh", 4 + n, 1) for n in range(8)))
    assert suggested(tmp_path, families)["zh"] == ["f7 zh 1", "f6 zh 1", "f5 zh 1", "f4 zh 1"]


def test_questions_of_several_messages_do_not_fit_the_page(tmp_path):
    found = answers(("units", "en", 2, 0))
    found[0]["messages"].append({"role": "assistant", "content": "?"})
    assert suggested(tmp_path, found)["en"] == ["units en 1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "input should be a valid dictionary"),
        (b'{"accuracy": 1}', "`answers`: field required"),
        (b'{"answers": [{"family": "x"}]}', "`answers.0.language`: field required"),
        (b'{"answers": 3}', "`answers`: input should be a valid list"),
    ],
)
def test_files_that_are_of_another_kind(tmp_path, content, message):
    path = tmp_path / "answers.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_suggestions(path)
    assert str(error.value).startswith(f"--suggestions {path}") and message in str(error.value)
    assert "evaluate.py --task questions --json FILE" in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file or directory"):
        read_suggestions(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_suggestions(tmp_path)
