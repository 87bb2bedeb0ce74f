"""What other directories' chat templates do is found by rendering them: headers, blocks, switches, what they lack."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_helpers import (
    ASK,
    BOTH,
    EMPTY,
    END,
    HEAD,
    THINK,
    TOKENIZER,
    TOOL,
    A,
    S,
    U,
    assistant,
    calls,
    result,
    runs,
    user,
)
from template_shapes import (
    ALWAYS_THINKS,
    CHATML,
    LLAMA3,
    MINIMIND2_OPENS,
    MINIMIND2_TOOLS,
    MINIMIND3,
    OURS,
    OURS_BEFORE,
    QWEN3,
    SHAPES,
    make_directory,
)

from minimind_jax.chat import TARGET, ChatEncoder, Conversation, ConversationError, chat_template
from minimind_jax.config import DataConfig, SftConfig
from minimind_jax.data import open_sft
from minimind_jax.errors import UserError
from minimind_jax.tokenizer import load_tokenizer

THOUGHTS = "<think>\nsix times seven\n</think>\n\n"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"


def with_template(directory: Path, template: str, eos: str = "<|im_end|>") -> ChatEncoder:
    return ChatEncoder(make_directory(directory, template, eos))


def encoded(encoder: ChatEncoder, *messages: dict[str, Any]) -> list[list[tuple[int, str]]]:
    return [runs(chat, encoder.template._tokenizer) for chat in encoder.encode(Conversation(messages))]


# --- Headers and switches -----------------------------------------------------------------------

HAS_SWITCH = {OURS, OURS_BEFORE, MINIMIND3, MINIMIND2_TOOLS, QWEN3}


@pytest.mark.parametrize("name", SHAPES)
def test_header_and_switch_are_found(name: str, tmp_path: Path) -> None:
    template = chat_template(make_directory(tmp_path, SHAPES[name]))
    header = "<|start_header_id|>assistant<|end_header_id|>\n\n" if name == "Llama-3" else HEAD
    assert template.header == header
    assert template.has_switch == (SHAPES[name] in HAS_SWITCH)


ENDS = {
    OURS: (EMPTY, ""),
    OURS_BEFORE: (EMPTY, ""),
    MINIMIND3: (EMPTY, "<think>\n"),
    MINIMIND2_OPENS: ("", ""),
    MINIMIND2_TOOLS: (EMPTY, ""),
    QWEN3: (EMPTY, ""),
    LLAMA3: ("", ""),
    CHATML: ("", ""),
    ALWAYS_THINKS: ("<think>\n", "<think>\n"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_prompts_end_as_the_template_has_it(name: str, tmp_path: Path) -> None:
    tokenizer = make_directory(tmp_path, SHAPES[name])
    template = chat_template(tokenizer)
    for thinking, end in zip((False, True), ENDS[SHAPES[name]], strict=True):
        prompt = template.prompt(Conversation([U]), thinking)
        text = tokenizer.decode(prompt.tokens, skip_special_tokens=False)
        assert text.endswith(f"你好{END if name != 'Llama-3' else '<|eot_id|>'}{template.header}{end}")


def test_a_template_without_a_switch_says_so(tmp_path: Path) -> None:
    plain = chat_template(make_directory(tmp_path / "plain", CHATML))
    plain.check_switch(False)
    with pytest.raises(UserError, match=r"has no switch for thinking \(it never asks the model to think\)"):
        plain.check_switch(True)
    thinks = chat_template(make_directory(tmp_path / "thinks", ALWAYS_THINKS))
    thinks.check_switch(True)
    with pytest.raises(UserError, match=r"has no switch for thinking \(it always lets the model think\)"):
        thinks.check_switch(False)
    for thinking in (True, False):
        chat_template(TOKENIZER).check_switch(thinking)


# --- What is learnt -----------------------------------------------------------------------------

ANSWER = (TARGET, "Hello 😀" + END)


def test_thoughts_and_blocks_of_minimind_3(tmp_path: Path) -> None:
    encoder = with_template(tmp_path, MINIMIND3)
    assert encoded(encoder, U, A) == [[(0, ASK + HEAD), (BOTH, EMPTY), ANSWER]]
    assert encoded(encoder, U, THINK) == [[(0, ASK + HEAD), (TARGET, THOUGHTS + "42" + END)]]
    literal = assistant(THOUGHTS + "42")
    assert encoded(encoder, U, literal) == encoded(encoder, U, THINK)
    # Thoughts stay: one sequence.
    assert encoded(encoder, U, THINK, U, A) == [
        [(0, ASK + HEAD), (TARGET, THOUGHTS + "42" + END), (0, ASK + HEAD), (BOTH, EMPTY), ANSWER]
    ]


@pytest.mark.parametrize("template", [QWEN3, MINIMIND2_TOOLS, OURS_BEFORE])
def test_history_that_is_rewritten_makes_sequences_of_their_own(template: str, tmp_path: Path) -> None:
    encoder = with_template(tmp_path, template)
    system = SYSTEM if template == MINIMIND2_TOOLS else ""
    assert encoded(encoder, U, A, U, A) == [
        [(0, system + ASK + HEAD), (BOTH, EMPTY), ANSWER],
        [(0, system + ASK + HEAD + "Hello 😀" + END + ASK + HEAD), (BOTH, EMPTY), ANSWER],
    ]
    assert encoded(encoder, U, THINK, U, THINK) == [
        [(0, system + ASK + HEAD), (TARGET, THOUGHTS + "42" + END)],
        [(0, system + ASK + HEAD + "42" + END + ASK + HEAD), (TARGET, THOUGHTS + "42" + END)],
    ]
    # A call without thoughts is rendered without its block once its result is there.
    call = assistant("", tool_calls=calls("f"))
    assert len(encoded(encoder, U, call, result("20"), A)) == 2


def test_templates_without_thoughts(tmp_path: Path) -> None:
    for name, template, system in (("opens", MINIMIND2_OPENS, SYSTEM), ("chatml", CHATML, "")):
        encoder = with_template(tmp_path / name, template)
        assert encoded(encoder, U, A, U, A) == [[(0, system + ASK + HEAD), ANSWER, (0, ASK + HEAD), ANSWER]]
        chosen, _ = encoder.encode_pair(Conversation([U, A]), Conversation([U, assistant("x")]))
        assert runs(chosen) == [(0, system + ASK + HEAD), ANSWER]
        # Thoughts that it would leave out are refused; the advice helps.
        with pytest.raises(ConversationError, match=r"leaves out `reasoning_content`: write it into the content"):
            encoder.encode(Conversation([U, THINK]))
        learnt = THOUGHTS + "42" + END
        assert encoded(encoder, U, assistant(THOUGHTS + "42")) == [[(0, system + ASK + HEAD), (TARGET, learnt)]]


def test_a_literal_empty_block_may_be_left_out_whatever_the_template(tmp_path: Path) -> None:
    encoder = with_template(tmp_path, CHATML)
    assert encoded(encoder, U, assistant(EMPTY + "yes")) == [[(0, ASK + HEAD), (BOTH, EMPTY), (TARGET, "yes" + END)]]


def test_an_answer_without_thoughts_closes_those_that_the_prompt_opens(tmp_path: Path) -> None:
    encoder = with_template(tmp_path, ALWAYS_THINKS)
    assert encoded(encoder, U, A) == [[(0, ASK + HEAD), (BOTH, EMPTY), ANSWER]]
    assert encoded(encoder, U, THINK) == [[(0, ASK + HEAD), (TARGET, THOUGHTS + "42" + END)]]


def test_a_block_that_only_the_prompt_has_comes_before_the_answer_in_training_too(tmp_path: Path) -> None:
    block = f"{{%- if add_generation_prompt and not enable_thinking -%}}{{{{- {EMPTY!r} -}}}}{{%- endif -%}}"
    encoder = with_template(tmp_path, CHATML + block)
    assert encoded(encoder, U, A) == [[(0, ASK + HEAD), (BOTH, EMPTY), ANSWER]]


def test_a_block_that_answer_and_prompt_write_differently_is_the_prompts(tmp_path: Path) -> None:
    block = f"{{%- if add_generation_prompt and not enable_thinking -%}}{{{{- {EMPTY!r} -}}}}{{%- endif -%}}"
    own = "('<think></think>' if message.role == 'assistant' else '') + message.content"
    encoder = with_template(tmp_path, CHATML.replace("message.content", own) + block)
    assert encoded(encoder, U, A) == [[(0, ASK + HEAD), (BOTH, EMPTY), ANSWER]]


def test_thoughts_that_the_prompt_closes_cannot_be_learnt(tmp_path: Path) -> None:
    closed = MINIMIND3.replace("open_thinking is true", "false")
    with pytest.raises(ConversationError, match="prompt closes the thoughts before the answer"):
        with_template(tmp_path, closed).encode(Conversation([U, THINK]))


def test_pairs_by_minimind_3(tmp_path: Path) -> None:
    encoder = with_template(tmp_path, MINIMIND3)
    chosen, rejected = encoder.encode_pair(Conversation([U, A]), Conversation([U, assistant("x")]))
    assert (runs(chosen), runs(rejected)) == (
        [(0, ASK + HEAD + EMPTY), ANSWER],
        [(0, ASK + HEAD + EMPTY), (TARGET, "x" + END)],
    )
    chosen, rejected = encoder.encode_pair(Conversation([U, THINK]), Conversation([U, A]))
    assert runs(chosen) == [(0, ASK + HEAD), (TARGET, THOUGHTS + "42" + END)]
    assert runs(rejected) == [(0, ASK + HEAD), (TARGET, EMPTY + "Hello 😀" + END)]


STRIPS = CHATML.replace("message.content", "message.content.split('</think>')[-1].lstrip('\\n')")


@pytest.mark.parametrize("template", [OURS, MINIMIND3, QWEN3, STRIPS])
def test_no_part_of_an_answer_vanishes_or_moves(template: str, tmp_path: Path) -> None:
    encoder = with_template(tmp_path, template)
    for content in ("Sure. <think>hm</think> yes", "<think>a</think>B<think>c</think>D"):
        with pytest.raises(ConversationError, match="leaves out or moves a part of an answer"):
            encoder.encode(Conversation([U, assistant(content)]))
    if template == STRIPS:
        with pytest.raises(ConversationError, match="leaves out or moves a part of an answer, 'six times seven'"):
            encoder.encode(Conversation([U, assistant(THOUGHTS + "42")]))
        with pytest.raises(ConversationError, match=r"leaves out `reasoning_content`: take another"):  # and no more
            encoder.encode(Conversation([U, THINK]))


def test_an_end_token_that_is_repeated_at_the_very_end(tmp_path: Path) -> None:
    encoder = with_template(tmp_path, CHATML + "{%- if not add_generation_prompt -%}{{- '<|im_end|>' -}}{%- endif -%}")
    assert encoded(encoder, U, A) == [[(0, ASK + HEAD), ANSWER]]


def test_llama_3_strips_text_and_ends_turns_without_a_line_break(tmp_path: Path) -> None:
    encoder = with_template(tmp_path, LLAMA3)
    head = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    question = "<|start_header_id|>user<|end_header_id|>\n\n你好<|eot_id|>"
    assert encoded(encoder, U, assistant(" x \n"), U, A) == [
        [
            (0, "<|begin_of_text|>" + question + head),
            *[(TARGET, "x<|eot_id|>"), (0, question + head), (TARGET, "Hello 😀<|eot_id|>")],
        ]
    ]


# --- Tokens that would join over the end of a prompt --------------------------------------------


def test_answers_are_encoded_apart_where_they_would_join_the_prompt(tmp_path: Path) -> None:
    """A tokenizer that has two line breaks and a space as one token, and a template without a think block."""
    TOKENIZER.save(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    spec["model"]["vocab"]["ĊĠ"] = len(spec["model"]["vocab"])
    spec["model"]["merges"].insert(0, ["Ċ", "Ġ"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    tokenizer = load_tokenizer(str(tmp_path))
    messages = [U, assistant(" \n x"), U, A]
    first, second = ChatEncoder(tokenizer).encode(Conversation(messages))
    for chat, before in ((first, messages[:1]), (second, messages[:3])):
        prompt = chat_template(tokenizer).prompt(Conversation(before)).tokens
        assert chat.tokens[: len(prompt)] == prompt
        assert chat.flags.index(TARGET) == len(prompt)
        assert tokenizer.decode(chat.tokens, skip_special_tokens=False) == chat.text
    assert first.n_bytes == len(b" \n x")
    # As one text they would have other tokens, which no prompt ends with.
    assert first.tokens != tokenizer.encode_rendered(first.text)


def test_another_header_and_end(tmp_path: Path) -> None:
    template = (
        "{%- for m in messages -%}{{- '<|reserved_0|>' if m.role == 'assistant' else '<|reserved_1|>' -}}"
        "{{- m.content -}}{{- '<|reserved_2|>' if m.role == 'assistant' else '' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|reserved_0|>' -}}{%- endif -%}"
    )
    encoder = with_template(tmp_path, template, eos="<|reserved_2|>")
    (chat,) = encoder.encode(Conversation([user("<|reserved_0|>\nhi"), assistant("\nyes"), U, A]))
    assert runs(chat) == [
        (0, "<|reserved_1|>< |reserved_0|>\nhi<|reserved_0|>"),
        (TARGET, "\nyes<|reserved_2|>"),
        (0, "<|reserved_1|>你好<|reserved_0|>"),
        (TARGET, "Hello 😀<|reserved_2|>"),
    ]
    assert chat.n_bytes == len("\nyesHello 😀".encode())


# --- Templates that cannot serve ----------------------------------------------------------------

IM_END = "<|im_end|>\\n"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHATML.partition("{%- if add")[0], "opens no answer"),
        (CHATML.replace("<|im_start|>", "### "), "which a user could write"),
        (
            CHATML.replace(f"'<|im_start|>assistant{IM_END[-2:]}'", "'<|im_start|>bot\\n'"),
            "does not begin every answer",
        ),
        (CHATML.replace(f"'{IM_END}'", "'\\n'"), "does not end answers with the eos token '<|im_end|>' but with '\\n'"),
        (
            CHATML.replace(f"'{IM_END}'", "('<|im_end|>' if message.role == 'user' else '')"),
            "does not end answers with",
        ),
        (CHATML.replace("message.content", "'x'"), "leaves out the user's message"),
        ("{{- raise_exception('never') -}}", "refuses the conversation: never"),
    ],
)
def test_templates_that_do_not_tell_turns_apart(template: str, message: str, tmp_path: Path) -> None:
    assert template != CHATML
    with pytest.raises(UserError, match=re.escape(message)):
        with_template(tmp_path, template)


def test_prompts_can_be_had_of_any_template(tmp_path: Path) -> None:
    """A server needs no more than a text that ends where an answer begins."""
    tokenizer = make_directory(tmp_path, CHATML.replace("<|im_start|>", "### ").replace("<|im_end|>", ""))
    prompt = chat_template(tokenizer).prompt(Conversation([U, A, U]))
    assert tokenizer.decode(prompt.tokens) == "### user\n你好\n### assistant\nHello 😀\n### user\n你好\n### assistant\n"
    with pytest.raises(ConversationError, match="which a user could write"):
        chat_template(tokenizer).unfinished(Conversation([U, A]))


def test_the_advice_for_such_templates_helps(tmp_path: Path) -> None:
    tokenizer = make_directory(tmp_path / "bad", CHATML.partition("{%- if add")[0])
    with pytest.raises(UserError, match=r"take another chat_template\.jinja, such as the one in") as raised:
        ChatEncoder(tokenizer)
    advised = Path(__file__).parents[2] / str(raised.value).rpartition(" in ")[2]
    (tokenizer.path / "chat_template.jinja").write_bytes((advised / "chat_template.jinja").read_bytes())
    assert ChatEncoder(load_tokenizer(str(tokenizer.path))).encode(Conversation([U, A]))


def test_the_advice_on_the_end_token_helps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"eos_token of tokenizer_config\.json"):
        with_template(tmp_path / "bad", CHATML, eos="<|endoftext|>")
    assert with_template(tmp_path / "good", CHATML, eos="<|im_end|>")


def test_a_directory_without_template(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        ChatEncoder(load_tokenizer(str(tmp_path)))


CALL, RESULT = assistant("", tool_calls=calls("f")), result("20")


@pytest.mark.parametrize(
    ("messages", "tools", "left_out"),
    [
        ([U, A], [TOOL], "`tools`"),
        ([U, CALL], None, "`tool_calls`"),
        ([U, A, RESULT, A], None, "messages of role tool"),
        ([U, A, S, U, A], None, "system messages after the first"),
    ],
)
def test_what_a_template_leaves_out_is_refused_by_name(
    messages: list, tools: Any, left_out: str, tmp_path: Path
) -> None:
    encoder = with_template(tmp_path, MINIMIND2_OPENS)
    with pytest.raises(ConversationError, match=f"^the chat template of .* leaves out {left_out}: take another"):
        encoder.encode(Conversation(messages, tools))
    assert encoder.encode(Conversation([S, U, A]))
    with pytest.raises(ConversationError, match="leaves out"):
        encoder.template.prompt(Conversation(messages[:-1] if len(messages) > 2 else messages, tools or [TOOL]))


def test_a_template_that_joins_or_refuses_messages_makes_bad_lines(tmp_path: Path) -> None:
    turn = CHATML.partition("{%- for message in messages -%}")[2].partition("{%- endfor -%}")[0]
    joins = CHATML.replace(
        turn, f"{{%- if loop.first or message.role != messages[loop.index0 - 1].role -%}}{turn}{{%- endif -%}}"
    )
    encoder = with_template(tmp_path / "joins", joins)
    with pytest.raises(ConversationError, match="does not render each assistant message as a turn of its own"):
        encoder.encode(Conversation([U, A, A]))
    endless = CHATML.replace(
        f"'{IM_END}'", f"('' if messages[0].role == 'system' and message.role == 'assistant' else '{IM_END}')"
    )
    encoder = with_template(tmp_path / "endless", endless)
    for messages in ([S, U, A], [S, U, A, A, U]):
        with pytest.raises(ConversationError, match="as a turn of its own"):
            encoder.encode(Conversation(messages))
    refuses = (
        f"{{%- if messages[0].role == 'system' -%}}{{{{- raise_exception('no system') -}}}}{{%- endif -%}}{CHATML}"
    )
    encoder = with_template(tmp_path / "refuses", refuses)
    good, bad = encoder.encode_many([Conversation([U, A]), Conversation([S, U, A])])
    assert isinstance(good, list)
    assert isinstance(bad, ConversationError) and "no system" in str(bad)


def test_an_answer_that_only_a_user_opens_needs_a_user_before_it(tmp_path: Path) -> None:
    encoder = with_template(tmp_path, MINIMIND2_OPENS)
    with pytest.raises(ConversationError, match="opens no answer after the last message"):
        encoder.encode(Conversation([U, A, A]))
    with pytest.raises(ConversationError, match="opens no answer after the last message"):
        encoder.template.prompt(Conversation([U, A]))


def test_the_last_answer_is_continued(tmp_path: Path) -> None:
    for name, template in SHAPES.items():
        tokenizer = make_directory(tmp_path / name.replace(" ", "_"), template)
        prompt = chat_template(tokenizer).unfinished(Conversation([U, assistant("The sky is")]))
        text = tokenizer.decode(prompt.tokens, skip_special_tokens=False)
        assert text.endswith("The sky is") and not prompt.in_thought
        with pytest.raises(ConversationError, match="not the assistant's"):
            chat_template(tokenizer).unfinished(Conversation([U]))


# --- Through the rows of SFT --------------------------------------------------------------------


@pytest.mark.parametrize("template", [OURS, OURS_BEFORE, MINIMIND3, QWEN3, MINIMIND2_TOOLS, ALWAYS_THINKS])
@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_empty_blocks_are_left_out_of_rows_wherever_a_template_writes_them(
    template: str, prob: float, tmp_path: Path
) -> None:
    tokenizer = make_directory(tmp_path / "tokenizer", template)
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"messages": [U, assistant(f"answer {i}")]}) + "\n" for i in range(5)))
    data = DataConfig(path=str(file), max_seq_len=128, cache_dir=str(tmp_path / "cache"))
    rows, _ = open_sft(data, SftConfig(0.0, prob), tokenizer, seed=0)
    tokens = np.concatenate([segment.tokens for item in range(5) for segment in rows.segments(item, epoch=0)])
    text = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
    assert text.count(EMPTY) == (0 if prob else 5)
    assert [f"answer {i}" in text for i in range(5)] == [True] * 5


def test_system_prompts_need_a_template_without_one_of_its_own_and_the_advice_helps(tmp_path: Path) -> None:
    tokenizer = make_directory(tmp_path / "tokenizer", MINIMIND2_OPENS)
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"messages": [U, A]}) + "\n")
    data = DataConfig(path=str(file), max_seq_len=128, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"set sft\.system_prompt_prob=0"):
        open_sft(data, SftConfig(0.5), tokenizer, seed=0)
    assert open_sft(data, SftConfig(0.0), tokenizer, seed=0)[0].n_docs == 1
