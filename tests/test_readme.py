"""README.md and README_zh.md say the same, section by section, and what they name exists."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FILES = ("README.md", "README_zh.md")
ENGLISH, CHINESE = ((REPOSITORY / name).read_text("utf-8") for name in FILES)
LANGUAGE_LINKS = {"README.md": "[中文](README_zh.md)", "README_zh.md": "[English](README.md)"}

FOREIGN_PROGRAMS = {".", "curl", "docker", "hf", "llama-server", "mkdir", "ollama", "pip", "sbatch", "tensorboard"}
FOREIGN_MODULES = {"sglang", "venv", "vllm"}  # what `python -m` runs and others wrote

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)]*)\)")
HAN = re.compile(r"[\u4e00-\u9fff]")


@dataclass
class Section:
    level: int
    title: str
    blocks: list[str]  # fenced, with their fences
    prose: str  # all else

    @property
    def code_spans(self) -> Counter[str]:
        return Counter(" ".join(span.split()) for span in CODE_SPAN.findall(self.prose))

    @property
    def plain(self) -> str:
        """The prose without code spans."""
        return CODE_SPAN.sub("", self.prose)

    @property
    def links(self) -> list[tuple[str, str]]:
        return LINK.findall(self.plain)

    @property
    def tables(self) -> list[list[int]]:
        """The number of columns of every row of every table."""
        tables = re.findall(r"(?:^\|.*\|$\n?)+", self.prose, re.MULTILINE)
        return [[CODE_SPAN.sub("", row).count("|") - 1 for row in table.splitlines()] for table in tables]

    @property
    def emphases(self) -> int:
        return self.plain.count("**")

    @property
    def list_items(self) -> int:
        return len(re.findall(r"^- ", self.prose, re.MULTILINE))

    @property
    def numbers(self) -> Counter[str]:
        return Counter(re.findall(r"\d+(?:[.,]\d+)*", LINK.sub("", self.plain)))


def sections(text: str) -> list[Section]:
    """What stands under each heading."""
    blocks = FENCE.findall(text)
    parts = re.split(r"^(#+) (.*)$", FENCE.sub("\0", text), flags=re.MULTILINE)
    assert not parts[0].strip(), "text before the title"
    found, used = [], 0
    for hashes, title, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        count = body.count("\0")
        for link in LANGUAGE_LINKS.values():
            body = body.replace(link, "")
        found.append(Section(len(hashes), title, blocks[used : used + count], body.replace("\0", "")))
        used += count
    return found


def differences(english: str, chinese: str) -> list[str]:
    """What the two do not have in common, one line each."""
    ours, theirs = sections(english), sections(chinese)
    if [s.level for s in ours] != [s.level for s in theirs]:
        return [f"headings: {[(s.level, s.title) for s in ours]} and {[(s.level, s.title) for s in theirs]}"]
    found = []
    for one, other in zip(ours, theirs, strict=True):
        for name in ("blocks", "links", "tables", "code_spans", "emphases", "list_items"):
            if (a := getattr(one, name)) != (b := getattr(other, name)):
                shown = (a - b, b - a) if isinstance(a, Counter) else (a, b)
                found.append(f"{one.title} / {other.title}: {name} {shown[0]} and {shown[1]}")
        if missing := one.numbers - other.numbers:  # Chinese may write more of them in digits
            found.append(f"{one.title} / {other.title}: numbers {missing} are missing")
    return found


def english_lines(chinese: str) -> Iterator[str]:
    """Lines of prose, list items and rows of tables that have words but hardly any Chinese."""
    for section in sections(chinese):
        for line in LINK.sub("", section.plain).splitlines():
            han, words = len(HAN.findall(line)), len(re.findall(r"[A-Za-z]{2,}", line))
            if words > 3 and han < words:
                yield line


def broken_emphases(text: str) -> Iterator[str]:
    """`**` that CommonMark prints as it stands: punctuation inside, a letter (as all of Chinese) outside."""

    def punctuation(character: str) -> bool:
        return not (character.isalnum() or character.isspace())

    for line in FENCE.sub("", text).splitlines():
        parts = CODE_SPAN.sub("``", line).split("**")
        for before, inside, after in zip(parts[::2], parts[1::2], parts[2::2], strict=False):
            opened = not punctuation(inside[0]) or not before or not before[-1].isalnum()
            closed = not punctuation(inside[-1]) or not after or not after[0].isalnum()
            if not (opened and closed) or inside != inside.strip():
                yield line


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command in the blocks marked as bash, and of the prose's `make ...`."""
    for block in FENCE.findall(text):
        if block.startswith("```bash\n"):
            lines = block.replace("\\\n", " ").splitlines()[1:-1]
            for words in (shlex.split(line, comments=True) for line in lines):
                while "&&" in words:
                    yield words[: words.index("&&")]
                    words = words[words.index("&&") + 1 :]
                if words:
                    yield words
    for span in CODE_SPAN.findall(FENCE.sub("", text)):
        if span.startswith("make "):
            yield span.split()


def missing(words: list[str]) -> Iterator[str]:
    """What a command names and the repository lacks."""
    program, targets = words[0], re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.MULTILINE)
    if program == "make":
        yield from (f"target {word}" for word in words[1:] if word not in targets)
    elif program not in FOREIGN_PROGRAMS | {"python", "python3"} and not program.startswith("scripts/"):
        yield f"program {program}"
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in ("python", "python3") and following != "-m" and not (REPOSITORY / following).is_file():
            yield f"script {following}"
        if word.startswith(("scripts/", "configs/")) and not (REPOSITORY / word.partition(":")[0]).is_file():
            yield f"file {word}"
        if word == "-r" and not (REPOSITORY / following).is_file():
            yield f"file {following}"
        if word == "-m" and program in ("python", "python3") and following.partition(".")[0] not in FOREIGN_MODULES:
            path = REPOSITORY.joinpath(*following.split("."))
            if not path.with_suffix(".py").is_file() and not (path / "__main__.py").is_file():
                yield f"module {following}"


def test_both_say_the_same():
    assert not differences(ENGLISH, CHINESE)


def test_nothing_is_left_in_english():
    assert not list(english_lines(CHINESE))


@pytest.mark.parametrize("name", FILES)
def test_each_names_the_other_under_its_title(name):
    title, empty, link = (REPOSITORY / name).read_text("utf-8").splitlines()[:3]
    assert (title, empty, link) == ("# minimind-jax", "", LANGUAGE_LINKS[name])


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=FILES)
def test_emphases_are_shown_as_such(text):
    assert not list(broken_emphases(text))


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=FILES)
def test_links_and_images_exist(text):
    targets = [target for _, target in LINK.findall(CODE_SPAN.sub("", FENCE.sub("", text)))]
    local = [target.partition("#")[0] for target in targets if not target.startswith(("http://", "https://"))]
    assert local and not [target for target in local if not (REPOSITORY / target).exists()]


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=FILES)
def test_commands_exist(text):
    named = list(commands(text))
    assert len(named) > 20 and not [(words, lack) for words in named for lack in missing(words)]


def test_the_layout_exists():
    (layout,) = (section for section in sections(ENGLISH) if section.title == "Layout")
    for line in layout.blocks[0].splitlines()[1:-1]:
        folder = REPOSITORY / "minimind_jax" if line.startswith("  ") else REPOSITORY
        for name in re.split(r" {2,}", line.strip())[0].split():
            assert (folder / name).is_dir() if name.endswith("/") else (folder / name).is_file(), name


def without_section(title: str) -> Callable[[str], str]:
    return lambda text: re.sub(rf"^### {title}\n.*?(?=^##)", "", text, flags=re.MULTILINE | re.DOTALL)


def replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, 1)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(without_section("Tokenizer"), id="a section"),
        pytest.param(replaced("\n### Docker", "\n## Docker"), id="a level"),
        pytest.param(replaced("make test ", "make tests "), id="a line of code"),
        pytest.param(replaced("(docs/quickstart.png)", "(docs/tiny.png)"), id="an image"),
        pytest.param(replaced("(docs/benchmarks.md)", "(docs/log.md)"), id="a link"),
        pytest.param(replaced("| `--seed` | `--config.seed` | |\n", ""), id="a row"),
        pytest.param(replaced("| `--epochs 12` |", "| | `--epochs 12` |"), id="a column"),
        pytest.param(replaced("`remat=full`", "`remat=none`"), id="a code span"),
        pytest.param(replaced("65,504", "65,540"), id="a number"),
        pytest.param(replaced("\n- **workdir**", "\n**workdir**"), id="a list item"),
        pytest.param(replaced("**workdir**", "workdir"), id="an emphasis"),
    ],
)
def test_a_difference_is_found(change):
    assert change(CHINESE) != CHINESE
    assert differences(ENGLISH, change(CHINESE))


def test_english_prose_is_found():
    sentence = "Only process 0 prints, and writes logs and samples."
    assert sentence in ENGLISH and sentence not in CHINESE
    changed = re.sub(r"^- 只有进程 0 .*$", f"- {sentence}", CHINESE, flags=re.MULTILINE)
    assert list(english_lines(changed)) == [f"- {sentence}"]


def test_an_emphasis_that_is_not_shown_is_found():
    assert list(broken_emphases("见**`a`**吧")) and list(broken_emphases("**不够。**先调大"))
    assert not list(broken_emphases("见 **`a`** 吧，**不够。** 先**调大**，再说"))


@pytest.mark.parametrize(
    "line",
    [
        "make tests",
        "python -m minimind_jax.nothing",
        "python -m minimind_jax.model --x",  # a package without __main__.py
        "docker run minimind-jax python trian.py",
        "python train.py --config configs/sft.py:tiny",
        "sbatch scripts/slrum.sh",
        "python3 -m venv .venv && pip install -r requirements-gpu.txt",
        "lama-server -m chat.gguf",
    ],
)
def test_what_does_not_exist_is_found(line):
    assert [lack for words in commands(f"```bash\n{line}\n```") for lack in missing(words)]
