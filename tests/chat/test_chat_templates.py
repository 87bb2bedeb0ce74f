"""Loss masks with the templates of other tokenizer directories."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from chat_helpers import ASK, BOTH, EMPTY, END, HEAD, THINK, TOKENIZER, A, S, U, assistant, runs, user
from minimind_jax.data.conversation import Conversation, Pair

from minimind_jax.data.chat import TARGET, ChatEncoder, EncodedChat
from minimind_jax.data.jsonl import LineError
from minimind_jax.errors import UserError
from minimind_jax.tokenizer import load_tokenizer


def with_template(directory: Path, template: str, eos: str = "<|im_end|>") -> ChatEncoder:
    TOKENIZER.save(directory)
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": eos}))
    return ChatEncoder(load_tokenizer(str(directory)))


LOOP = "{%- for m in messages -%}"
TURN = "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}"
PROMPT = "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
CHATML = f"{LOOP}{TURN}{{%- endfor -%}}{PROMPT}"


def test_a_template_without_thoughts(tmp_path: Path) -> None:
    encoder = with_template(tmp_path, CHATML)
    chat = encoder.encode(Conversation([U, THINK, U, A], None))
    assert runs(chat) == [(0, ASK + HEAD), (TARGET, "42" + END), (0, ASK + HEAD), (TARGET, "Hello 😀" + END)]
    chosen, _ = encoder.encode_pair(Pair(Conversation([U, A], None), Conversation([U, assistant("x")], None)))
    assert runs(chosen) == [(0, ASK + HEAD), (TARGET, "Hello 😀" + END)]


def test_a_template_whose_block_is_not_optional(tmp_path: Path) -> None:
    """As Qwen3's: the last answer always has a block, and the prompt has one where thinking is off."""
    block = EMPTY.replace("\n", "\\n")
    turn = TURN.replace("+ m.content", f"+ ('{block}' if loop.last and m.role == 'assistant' else '') + m.content")
    prompt_block = f"{{%- if add_generation_prompt and not enable_thinking -%}}{{{{- '{block}' -}}}}{{%- endif -%}}"
    encoder = with_template(tmp_path, f"{LOOP}{turn}{{%- endfor -%}}{PROMPT}{prompt_block}")
    assert runs(encoder.encode(Conversation([U, A], None))) == [(0, ASK + HEAD), (TARGET, EMPTY + "Hello 😀" + END)]
    chosen, _ = encoder.encode_pair(Pair(Conversation([U, A], None), Conversation([U, assistant("x")], None)))
    assert runs(chosen) == [(0, ASK + HEAD + EMPTY), (TARGET, "Hello 😀" + END)]


def test_a_template_that_renders_all_thoughts(tmp_path: Path) -> None:
    """Still only the answers after the last question get an empty block."""
    thoughts = "('<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' if m.reasoning_content is defined else '')"
    turn = TURN.replace("+ m.content", f"+ {thoughts} + m.content")
    block = f"{{%- if add_generation_prompt and not enable_thinking -%}}{{{{- {EMPTY!r} -}}}}{{%- endif -%}}"
    encoder = with_template(tmp_path, f"{LOOP}{turn}{{%- endfor -%}}{PROMPT}{block}")
    assert [flags for flags, _ in runs(encoder.encode(Conversation([U, A, U, A], None)))] == [
        0,
        TARGET,
        0,
        BOTH,
        TARGET,
    ]
    chat = encoder.encode(Conversation([U, THINK, U, A], None))
    assert runs(chat)[1] == (TARGET, "<think>\nsix times seven\n</think>\n\n42" + END)


def test_white_space_that_only_much_later_text_joins_to_the_block(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    spec["model"]["vocab"]["ĊĠ"] = len(spec["model"]["vocab"])
    spec["model"]["merges"].insert(0, ["Ċ", "Ġ"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    encoder = ChatEncoder(load_tokenizer(str(tmp_path)))
    # Without the line break after them the spaces join nothing.
    for content, optional in ((" " * 80 + "x", True), (" " * 80 + "\nx", False)):
        chat = encoder.encode(Conversation([U, assistant(content)], None))
        assert (BOTH in chat.flags) == optional


def test_another_header_and_end(tmp_path: Path) -> None:
    template = (
        "{%- for m in messages -%}{{- '<|reserved_0|>' if m.role == 'assistant' else '<|reserved_1|>' -}}"
        "{{- m.content -}}{{- '<|reserved_2|>' if m.role == 'assistant' else '' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|reserved_0|>' -}}{%- endif -%}"
    )
    encoder = with_template(tmp_path, template, eos="<|reserved_2|>")
    chat = encoder.encode(Conversation([user("<|reserved_0|>\nhi"), assistant("\nyes"), U, A], None))
    assert runs(chat) == [
        (0, "<|reserved_1|>< |reserved_0|>\nhi<|reserved_0|>"),
        (TARGET, "\nyes<|reserved_2|>"),
        (0, "<|reserved_1|>你好<|reserved_0|>"),
        (TARGET, "Hello 😀<|reserved_2|>"),
    ]
    assert chat.n_bytes == len("\nyesHello 😀".encode())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (f"{LOOP}{TURN}{{%- endfor -%}}", "adds no generation prompt"),
        (CHATML.replace("<|im_start|>", "### "), "which a user could write"),
        (CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>bot\n'"), "does not begin every assistant turn"),
        (CHATML.replace("'<|im_end|>\n'", "'\n'"), "end it with '<|im_end|>'"),
        (CHATML.replace("'<|im_end|>\n'", "('<|im_end|>' if m.role == 'user' else '')"), "end it with '<|im_end|>'"),
        (CHATML.replace("'<|im_end|>\n'", "('<|im_end|>' if m.role == 'user' or loop.last else '')"), "end it with"),
        ("{{- raise_exception('never') -}}", "refuses the conversation: never"),
    ],
)  # fmt: skip
def test_templates_that_do_not_tell_turns_apart(template: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        with_template(tmp_path, template)


def test_a_directory_without_template(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        ChatEncoder(load_tokenizer(str(tmp_path)))


def test_a_template_that_joins_or_refuses_messages_makes_bad_lines(tmp_path: Path) -> None:
    joins = CHATML.replace(
        TURN, f"{{%- if loop.first or m.role != messages[loop.index0 - 1].role -%}}{TURN}{{%- endif -%}}"
    )
    encoder = with_template(tmp_path / "joins", joins)
    with pytest.raises(LineError, match="does not render each assistant message as a turn of its own"):
        encoder.encode(Conversation([U, A, A], None))
    endless = CHATML.replace(
        "'<|im_end|>\n'", "('' if messages[0].role == 'system' and m.role == 'assistant' else '<|im_end|>\n')"
    )
    encoder = with_template(tmp_path / "endless", endless)
    for messages in ([S, U, A], [S, U, A, A, U]):
        with pytest.raises(LineError, match="as a turn of its own"):
            encoder.encode(Conversation(messages, None))
    refuses = (
        f"{{%- if messages[0].role == 'system' -%}}{{{{- raise_exception('no system') -}}}}{{%- endif -%}}{CHATML}"
    )
    encoder = with_template(tmp_path / "refuses", refuses)
    good, bad = encoder.encode_many([Conversation([U, A], None), Conversation([S, U, A], None)])
    assert isinstance(good, EncodedChat)
    assert isinstance(bad, LineError) and "no system" in str(bad)
