"""The synthetic corpus on disk: formats, reproducible bytes, nothing lost."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minimind_jax.data.generate import FAMILIES, LANGUAGES, MANIFEST, Sizes, generate, is_correct
from minimind_jax.data.generate.__main__ import main
from minimind_jax.data.generate.write import MAX_QUESTIONS
from minimind_jax.errors import UserError

SMALL = Sizes(documents=400, conversations=200, pairs=100, questions=3)


def quiet(_: str) -> None:
    pass


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_the_files_have_minimind_formats(tmp_path):
    generate(tmp_path, sizes=SMALL, log=quiet)
    expected = {"pretrain": 400, "pretrain_val": 20, "sft": 200, "sft_val": 10, "dpo": 100, "dpo_val": 5}
    for name, n in expected.items():
        assert len(records(tmp_path / f"{name}.jsonl")) == n
    texts = [record["text"] for record in records(tmp_path / "pretrain.jsonl")]
    assert all(texts)
    chinese = sum(bool(re.search("[。：]", text)) for text in texts)
    assert chinese == len(texts) // 2
    chats = [record["conversations"] for record in records(tmp_path / "sft.jsonl")]
    for chat in chats:
        roles = [message["role"] for message in chat if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert "system" not in [message["role"] for message in chat[1:]]
    assert sum(chat[0]["role"] == "system" for chat in chats) > 10
    assert sum(len(chat) > 3 for chat in chats) > 20
    questions = records(tmp_path / "questions.jsonl")
    assert len(questions) == 3 * len(FAMILIES) * len(LANGUAGES) == len({q["id"] for q in questions})
    for q in questions:
        assert set(q) == {"id", "family", "language", "conversations", "answer", "gt"}
        assert q["gt"][0] == q["answer"] and is_correct(q["answer"], q)


def test_no_held_out_question_stands_in_a_training_file(tmp_path):
    generate(tmp_path, sizes=Sizes(3000, 2000, 500, 20), log=quiet)
    training = "\n".join(
        text
        for name in ("pretrain", "sft", "dpo")
        for record in records(tmp_path / f"{name}.jsonl")
        for text in (record.get("text"), *(m["content"] for k in record if k != "text" for m in record[k]))
        if text
    )
    for question in records(tmp_path / "questions.jsonl"):
        asked = question["conversations"][0]["content"]
        # A whole line: "1 + 2" is also the end of "11 + 2".
        assert not re.search(rf"(?m)^((问题：|Question: )?){re.escape(asked)}$", training), asked


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_bytes_depend_on_the_seed_alone(tmp_path):
    generate(tmp_path / "a", 7, SMALL, log=quiet)
    script = "from minimind_jax.data.generate.__main__ import main; main()"
    flags = [
        "--seed",
        "7",
        "--documents",
        "400",
        "--conversations",
        "200",
        "--pairs",
        "100",
        "--questions",
        "3",
        "--out",
    ]
    for name, hash_seed in (("b", "1"), ("c", "2")):
        command = [sys.executable, "-c", script, *flags, str(tmp_path / name)]
        subprocess.run(command, check=True, env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)})
    assert digest(tmp_path / "a") == digest(tmp_path / "b") == digest(tmp_path / "c")
    generate(tmp_path / "d", 8, SMALL, log=quiet)
    assert not set(digest(tmp_path / "a").values()) & set(digest(tmp_path / "d").values())


def test_the_bytes_of_this_version_are_known(tmp_path):
    """Fails when the corpus changes: then raise VERSION, so that nobody takes old files for new ones."""
    generate(tmp_path, 0, SMALL, log=quiet)
    digests = "".join(sha for name, sha in digest(tmp_path).items() if name != MANIFEST)
    assert hashlib.sha256(digests.encode()).hexdigest()[:16] == "78229b3362e70dcb"


def test_a_smaller_corpus_is_a_prefix(tmp_path):
    generate(tmp_path / "a", sizes=Sizes(50, 0, 0, 0), log=quiet)
    generate(tmp_path / "b", sizes=Sizes(2100, 0, 0, 0), log=quiet)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        MANIFEST,
        "pretrain.jsonl",
        "pretrain_val.jsonl",
    ]
    small, large = ((tmp_path / d / "pretrain.jsonl").read_bytes() for d in "ab")
    assert large.startswith(small)


def test_a_second_run_keeps_the_files_and_makes_missing_ones(tmp_path, capsys):
    generate(tmp_path, 0, SMALL, log=quiet)
    before, times = digest(tmp_path), {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    main(
        [
            *["--documents", "400", "--conversations", "200", "--pairs", "100", "--questions", "3", "--out"],
            str(tmp_path),
        ]
    )
    assert "already generated" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times
    (tmp_path / "sft.jsonl").unlink()
    generate(tmp_path, 0, SMALL, log=quiet)
    assert digest(tmp_path) == before
    assert (tmp_path / "dpo.jsonl").stat().st_mtime_ns == times["dpo.jsonl"]


def test_nothing_is_overwritten_without_force(tmp_path):
    mine = tmp_path / "sft.jsonl"
    mine.write_text("mine\n")
    with pytest.raises(UserError, match=r"sft\.jsonl.*--force"):
        generate(tmp_path, 0, SMALL, log=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["sft.jsonl"] and mine.read_text() == "mine\n"
    generate(tmp_path, 0, SMALL, force=True, log=quiet)
    assert len(records(mine)) == 200
    with pytest.raises(UserError, match="--force"):
        generate(tmp_path, 1, SMALL, log=quiet)
    mine.write_text("edited\n")
    with pytest.raises(UserError, match=r"has sft\.jsonl, not"):
        generate(tmp_path, 0, SMALL, log=quiet)
    (tmp_path / MANIFEST).write_text('{"files": {"sft.jsonl": 3}}')
    with pytest.raises(UserError, match="--force"):
        generate(tmp_path, 0, SMALL, log=quiet)


@pytest.mark.parametrize("name", ["sft.jsonl", MANIFEST])
def test_a_directory_in_the_way_is_left_alone(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="is a directory"):
        generate(tmp_path, 0, SMALL, force=True, log=quiet)
    assert (tmp_path / name).is_dir()
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_run_leaves_nothing(tmp_path):
    def stop(message: str) -> None:
        if message.startswith("sft.jsonl"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, 0, SMALL, log=stop)
    assert list(tmp_path.iterdir()) == []


def test_bad_values_are_one_sentence(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    for flags, words in (
        (["--out", str(file)], "is a file"),
        (["--out", str(file / "below")], "below a file"),
        (["--out", str(tmp_path / "a"), "--documents", "-1"], "--documents -1"),
        (["--out", str(tmp_path / "a"), "--questions", str(MAX_QUESTIONS + 1)], "--questions"),
        (
            [
                "--out",
                str(tmp_path / "a"),
                *["--documents", "0", "--conversations", "0", "--pairs", "0", "--questions", "0"],
            ],
            "nothing",
        ),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(flags)
        assert words in str(exit_.value) and str(exit_.value).startswith("error: ")
    assert not (tmp_path / "a").exists()
    with pytest.raises(SystemExit) as exit_:
        main(["--out", str(tmp_path / "a"), "--documents", "many"])
    assert exit_.value.code == 2 and "--documents" in capsys.readouterr().err


def test_needs_only_the_standard_library():
    """The generator's own modules import nothing but the standard library and the errors."""
    folder = Path(sys.modules[generate.__module__].__file__).parent
    for path in folder.glob("*.py"):
        for module in re.findall(r"(?m)^\s*(?:from|import) ([\w.]+)", path.read_text("utf-8")):
            if not module.startswith("minimind_jax.data.generate") and module != "minimind_jax.errors":
                assert module.split(".")[0] in sys.stdlib_module_names, (path.name, module)
