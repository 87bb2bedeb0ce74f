"""Whatever asks for thoughts changes the prompt, or says that the template has no such switch."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import pytest
from serving_helpers import TOKENIZER, ScriptedEngine, ask, question, served

from minimind_jax.errors import UserError
from minimind_jax.serving import Dialogue, Options, Terminal
from minimind_jax.tokenizer import Tokenizer, load_tokenizer

CHATML = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' + block -}}{%- endif -%}"
)
TEMPLATES = {
    "none": CHATML.replace(" + block", ""),
    "always": CHATML.replace("block", "'<think>\\n'"),
    "enable": CHATML.replace("block", "('' if enable_thinking else '<think>\\n\\n</think>\\n\\n')"),
    "open": CHATML.replace("block", "('<think>\\n' if open_thinking else '<think>\\n\\n</think>\\n\\n')"),
}
ON, OFF = {"enable": "<|im_start|>assistant\n", "open": "<think>\n"}, "<think>\n\n</think>\n\n"
CHAT = "/v1/chat/completions"


def tokenizer(directory: Path, name: str) -> Tokenizer:
    TOKENIZER.save(directory)
    (directory / "chat_template.jinja").write_text(TEMPLATES[name])
    return load_tokenizer(str(directory))


def engine(directory: Path, name: str, text: str = "fine") -> Any:
    scripted = ScriptedEngine(text)
    scripted.tokenizer = tokenizer(directory, name)
    return scripted


ASKING = [
    {"enable_thinking": True},
    {"open_thinking": True},
    {"chat_template_kwargs": {"enable_thinking": True}},
    {"chat_template_kwargs": {"open_thinking": True}},
    {"chat_template_kwargs": {"thinking": True}},
    {"reasoning_effort": "medium"},
]
NOT_ASKING: list[dict[str, Any]] = [
    {},
    {"enable_thinking": False},
    {"enable_thinking": None},
    {"chat_template_kwargs": {"open_thinking": False}},
    {"chat_template_kwargs": {}},
    {"reasoning_effort": "none"},
]


@pytest.mark.parametrize("name", ["enable", "open"])
def test_every_switch_works_with_every_template_that_has_one(name: str, tmp_path: Path) -> None:
    scripted = engine(tmp_path, name)
    with served(scripted) as port:
        for fields in ASKING + NOT_ASKING:
            assert ask(port, "POST", CHAT, question(**fields)).status == 200
    ends = [scripted.prompts[i].endswith(ON[name] if i < len(ASKING) else OFF) for i in range(len(scripted.prompts))]
    assert ends == [True] * (len(ASKING) + len(NOT_ASKING))


def test_without_a_switch_asking_for_thoughts_says_so(tmp_path: Path) -> None:
    with served(engine(tmp_path, "none")) as port:
        for fields in ASKING:
            answer = ask(port, "POST", CHAT, question(**fields))
            assert answer.status == 400
            assert "has no switch for thinking (it never asks the model to think)" in answer.body["error"]["message"]
        for fields in NOT_ASKING:
            assert ask(port, "POST", CHAT, question(**fields)).status == 200


def test_thoughts_that_cannot_be_switched_off(tmp_path: Path) -> None:
    with served(engine(tmp_path, "always", text="hm\n</think>\n\nfine")) as port:
        for fields in [{}, *ASKING]:
            message = ask(port, "POST", CHAT, question(**fields)).body["choices"][0]["message"]
            assert (message["reasoning_content"], message["content"]) == ("hm", "fine")
        answer = ask(port, "POST", CHAT, question(enable_thinking=False))
        assert answer.status == 400 and "always lets the model think" in answer.body["error"]["message"]


def test_the_terminal_says_so_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no switch for thinking"):
        Dialogue(engine(tmp_path / "none", "none"), Options(), thinking=True)
    notes = io.StringIO()
    dialogue = Dialogue(engine(tmp_path / "none", "none"), Options())
    lines = itertools.chain(["/think on", "/think off"], itertools.repeat("/quit"))
    Terminal(io.StringIO(), notes, interactive=False).run(dialogue, lambda _: next(lines))
    assert "error: the chat template of" in notes.getvalue() and "thinking is off" in notes.getvalue()
    scripted = engine(tmp_path / "open", "open", text="hm\n</think>\n\nfine")
    Dialogue(scripted, Options(), thinking=True).ask("hi", lambda _: None)
    assert scripted.prompts[0].endswith("<think>\n")
