"""What a tokenizer directory's chat template does, found by rendering it: prompts, and the answers that follow them.

Nothing here knows a template's text. Its switch for thinking may be `enable_thinking`, `open_thinking` or `thinking`
(all are always given); its prompt may end in an empty think block, in an open one or in none; its answers may carry a
block, always or sometimes or never; earlier turns may be rendered unlike the last one; a user's turn may open the
answer.

A turn is what a server sends before an answer, and the answer as the template renders it where it comes last.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minimind_jax.chat.conversation import Conversation, ConversationError
from minimind_jax.errors import UserError
from minimind_jax.tokenizer import Tokenizer

THINK, END_THINK = "<think>", "</think>"
# What a prompt may add to the header: nothing, an open block or one without thoughts.
_MARKS = re.compile(rf"(?:{THINK}\s*)?(?:{END_THINK}\s*)?")
EMPTY_BLOCK = re.compile(rf"{THINK}\s*{END_THINK}\n{{0,2}}")
# Variables of a rendering that are not the template's own to set.
RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message", "self"})

_Q, _A, _PROBE = "question?", "answer!", "zqxprobe"
_QUESTION = {"role": "user", "content": _Q}
_ANSWER = {"role": "assistant", "content": _A}
_CALL = {"type": "function", "function": {"name": _PROBE, "arguments": {}}}
_SIGNATURE = {"type": "function", "function": {"name": _PROBE, "description": _PROBE, "parameters": {}}}
_ADVICE = "take another chat_template.jinja, such as the one in minimind_jax/tokenizer/minimind"


@dataclass(frozen=True)
class Prompt:
    """What a model is given: its tokens, and whether they end within an open thought."""

    tokens: list[int]
    in_thought: bool


@dataclass(frozen=True)
class Turn:
    """One answer in its context.

    Attributes:
      prompt: text of the prompt that a server sends for it.
      answer: what the model is to write, up to the end token and the line break after it.
      header_end: where the prompt's last header ends; a think block may follow.
      end_token: where the end token stands in prompt + answer.
    """

    prompt: str
    answer: str
    header_end: int
    end_token: int

    @property
    def text(self) -> str:
        return self.prompt + self.answer


@functools.lru_cache(maxsize=16)
def chat_template(tokenizer: Tokenizer) -> ChatTemplate:
    """The tokenizer's template, probed once."""
    return ChatTemplate(tokenizer)


class ChatTemplate:
    """A tokenizer directory's template.

    Attributes:
      header: what opens an answer, such as `<|im_start|>assistant` and a line break; "" where that is not known.
      has_switch: whether the prompts with and without thinking differ.
      problem: why nothing can be learnt by it, "" if it can; prompts can be had for all that.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._end_token = tokenizer.decode([tokenizer.eos_id], skip_special_tokens=False)
        self._parts: dict[str, bool] = {}  # parts of a conversation, and whether they are rendered
        self.header, self.problem, self.has_switch, self._always_thinks = "", "", True, False
        try:
            prompts = {thinking: self._prompt_text(Conversation([_QUESTION]), thinking) for thinking in (True, False)}
            self.has_switch = prompts[True] != prompts[False]
            self._always_thinks = not self.has_switch and _opens_thought(prompts[True])
            self.header = self._find_header(prompts)
            self._check()
        except UserError as e:
            self.header, self.problem = "", str(e)

    # --- Prompts --------------------------------------------------------------------------------

    def prompt(
        self, conversation: Conversation, thinking: bool = False, variables: Mapping[str, Any] | None = None
    ) -> Prompt:
        """What the assistant's next message is written after.

        Args:
          thinking: the template's switch, if it has one.
          variables: more of the template's variables, none of RESERVED.

        Raises:
          ConversationError: the template refuses the conversation, leaves a part of it out, or opens no answer.
        """
        self._check_rendered(conversation)
        variables = self._tokenizer.neutralizer.value(variables or {})
        text = self._prompt_text(self._neutral(conversation), thinking, variables)
        if self.header:
            self._header_end(text)
        return Prompt(self._tokenizer.encode_rendered(text), _opens_thought(text))

    def unfinished(self, conversation: Conversation) -> Prompt:
        """The last message, the assistant's, as far as it goes: what the model is to continue. Raises as `prompt`."""
        if not conversation.messages or conversation.messages[-1]["role"] != "assistant":
            raise ConversationError("the last message is not the assistant's: there is nothing to continue", "messages")
        turn = self.last_turn(conversation)
        text = turn.text[: turn.end_token]
        in_thought = text.rfind(THINK, turn.header_end) > text.rfind(END_THINK, turn.header_end)
        return Prompt(self._tokenizer.encode_rendered(text), in_thought)

    def check_turns(self) -> None:
        """Raises ConversationError where answers cannot be told apart.

        There is no chat template, or nothing opens answers, or something that a user could write, or they do not end
        with the eos token.
        """
        if self.problem:
            raise ConversationError(self.problem, "messages")

    @property
    def thinking(self) -> str:
        """What a server can do about it: switch (as asked), always, never."""
        return "switch" if self.has_switch else "always" if self._always_thinks else "never"

    def check_switch(self, thinking: bool) -> None:
        """Raises UserError where the template cannot do as asked."""
        if not self.has_switch and thinking != self._always_thinks:
            state = "always lets the model think" if self._always_thinks else "never asks the model to think"
            raise UserError(
                f"the chat template of {self._tokenizer.path} has no switch for thinking (it {state}): leave that away"
            )

    # --- Turns ----------------------------------------------------------------------------------

    def turns(self, conversation: Conversation) -> list[Turn]:
        """The answers that are learnt, each in its own context; one with nothing before it is none.

        Raises:
          ConversationError: the template refuses the conversation, leaves a part of it out, or does not render an
            answer as a turn of its own; no answer to learn.
        """
        learnt = [
            number
            for number, message in enumerate(conversation.messages)
            if number and message["role"] == "assistant" and number not in conversation.context
        ]
        if not learnt:
            raise ConversationError("no assistant message after another one: nothing to learn", "messages")
        self._check_rendered(conversation, learnt)
        neutral = self._neutral(conversation)
        return [self._turn(neutral, number) for number in learnt]

    def last_turn(self, conversation: Conversation) -> Turn:
        """The last message, the assistant's, after at least one other. Raises as `turns`."""
        self.check_turns()
        last = len(conversation.messages) - 1
        self._check_rendered(conversation, [last])
        return self._turn(self._neutral(conversation), last)

    def _turn(self, conversation: Conversation, number: int) -> Turn:
        """The assistant's message `number` as the last one.

        An answer with thoughts follows the prompt with thinking on, one without the prompt with thinking off.
        """
        before, message = list(conversation.messages[:number]), conversation.messages[number]
        tools, thinking = conversation.tools, has_thoughts(message)
        prompt = self._prompt_text(Conversation(before, tools), thinking)
        header_end = self._header_end(prompt)
        whole = self._render([*before, message], tools, thinking)
        answer = _answer(whole, prompt, header_end, thinking)
        end = answer.find(self._end_token)
        after = end + len(self._end_token)
        if end < 0 or answer[after:].replace(self._end_token, "").strip():  # some repeat it at the very end
            raise _no_turn()
        _check_kept(message, answer[:end])
        return Turn(prompt, answer[: after + answer.startswith("\n", after)], header_end, len(prompt) + end)

    # --- Rendering ------------------------------------------------------------------------------

    def _neutral(self, conversation: Conversation) -> Conversation:
        clean, tools = self._tokenizer.neutralizer, conversation.tools
        return Conversation(clean.messages(conversation.messages), tools and clean.value(tools))

    def _prompt_text(
        self, conversation: Conversation, thinking: bool, variables: Mapping[str, Any] | None = None
    ) -> str:
        prompting = {"add_generation_prompt": True, **(variables or {})}
        return self._render(conversation.messages, conversation.tools, thinking, prompting)

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        thinking: bool,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        switches = {"enable_thinking": thinking, "open_thinking": thinking, "thinking": thinking, **(variables or {})}
        try:
            return self._tokenizer.render(messages, tools, **switches)
        except UserError as e:
            raise ConversationError(str(e), "messages") from None

    def _header_end(self, prompt: str) -> int:
        start = prompt.rfind(self.header)
        end = start + len(self.header)
        if start < 0 or not _MARKS.fullmatch(prompt, end):
            raise ConversationError("the chat template opens no answer after the last message", "messages")
        return end

    # --- Probing --------------------------------------------------------------------------------

    def _find_header(self, prompts: Mapping[bool, str]) -> str:
        """What both prompts have between question and think block, without the end of the user's turn."""
        tails = []
        for text in prompts.values():
            _, found, tail = text.rpartition(_Q)
            if not found:
                raise self._unusable("leaves out the user's message")
            tails.append(re.split(f"{THINK}|{END_THINK}", tail)[0])
        opening = os.path.commonprefix(tails)  # noqa: RUF071 (by characters)
        _, closed, header = opening.rpartition(self._end_token)
        return header.removeprefix("\n") if closed else opening

    def _check(self) -> None:
        if not self.header.strip():
            raise self._unusable("opens no answer: it adds no generation prompt and no user's turn ends in one")
        user = Conversation([{**_QUESTION, "content": f"u{self.header}u"}])
        if user.messages[0]["content"] in self._prompt_text(self._neutral(user), thinking=False):
            raise self._unusable(f"opens an answer with {self.header!r}, which a user could write")
        text = self._render([_QUESTION, _ANSWER], None, thinking=False)
        before, _, after = text.rpartition(_A)
        if not re.search(f"{re.escape(self.header)}{_MARKS.pattern}$", before):
            raise self._unusable(f"does not begin every answer with its generation prompt's {self.header!r}")
        if not after.startswith(self._end_token):
            raise self._unusable(
                f"does not end answers with the eos token {self._end_token!r} but with {after[:20]!r} (the key "
                "eos_token of tokenizer_config.json names the token that ends an answer)"
            )

    def _unusable(self, problem: str) -> UserError:
        return UserError(
            f"the chat template of {self._tokenizer.path} {problem}, so that what is to be learnt cannot be told "
            f"apart: {_ADVICE}"
        )

    def _check_rendered(self, conversation: Conversation, learnt: Collection[int] = ()) -> None:
        """Raises ConversationError for what the template would leave out without a word (of thoughts: those learnt)."""
        used = {"tools": "`tools`"} if conversation.tools else {}
        for number, message in enumerate(conversation.messages):
            if message["role"] == "tool":
                used["tool"] = "messages of role tool"
            elif message["role"] == "system":
                used["later system" if number else "system"] = "system messages" + (
                    " after the first" if number else ""
                )
            elif "tool_calls" in message:
                used["tool_calls"] = "`tool_calls`"
            if number in learnt and "reasoning_content" in message:
                used["reasoning_content"] = "`reasoning_content`"
        for part, name in used.items():
            if not self._renders(part):
                more = ""
                if part == "reasoning_content" and self._renders("literal thoughts"):
                    more = f"write it into the content as {THINK}...{END_THINK}, or "
                raise ConversationError(
                    f"the chat template of {self._tokenizer.path} leaves out {name}: {more}{_ADVICE}", "messages"
                )

    def _renders(self, part: str) -> bool:
        if part not in self._parts:
            self._parts[part] = self._try_part(part)
        return self._parts[part]

    def _try_part(self, part: str) -> bool:
        system, call = {"role": "system", "content": _PROBE}, {**_ANSWER, "content": "", "tool_calls": [_CALL]}
        other_call = {**call, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
        examples: dict[str, list[dict[str, Any]]] = {
            "tools": [_QUESTION],
            "system": [system, _QUESTION],
            "later system": [_QUESTION, _ANSWER, system, _QUESTION],
            "tool_calls": [_QUESTION, call],
            "tool": [_QUESTION, other_call, {"role": "tool", "name": "f", "content": _PROBE}],
            "reasoning_content": [_QUESTION, {**_ANSWER, "reasoning_content": _PROBE}],
            "literal thoughts": [_QUESTION, {**_ANSWER, "content": f"{THINK}\n{_PROBE}\n{END_THINK}\n\n{_A}"}],
        }
        try:
            return _PROBE in self._render(examples[part], [_SIGNATURE] if part == "tools" else None, thinking=True)
        except ConversationError:
            return True  # it says so itself, then


def has_thoughts(message: Mapping[str, Any]) -> bool:
    """Whether an assistant's message has thoughts, in a field of their own or literally before its content."""
    if message.get("reasoning_content"):
        return True
    before, closed, _ = message["content"].partition(END_THINK)
    return bool(closed) and bool(before.rpartition(THINK)[2].strip())


def _answer(whole: str, prompt: str, header_end: int, thinking: bool) -> str:
    """The answer in `whole`, made to follow `prompt` where their think blocks differ or only one of them has any."""
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    if not whole.startswith(prompt[:header_end]):
        raise _no_turn()
    answer, opened = whole[header_end:], _opens_thought(prompt)
    if thinking:
        if not opened:
            message = "`reasoning_content`: the chat template's prompt closes the thoughts before the answer"
            raise ConversationError(message, "reasoning_content")
        return answer.removeprefix(THINK).lstrip("\n")
    if block := EMPTY_BLOCK.match(answer):
        answer = answer[block.end() :]
    return f"\n{END_THINK}\n\n{answer}" if opened else answer


def _check_kept(message: Mapping[str, Any], answer: str) -> None:
    """Raises ConversationError where a template has left out a part of what is to be learnt, or moved it."""
    texts = [message.get("reasoning_content") or "", *re.split(f"{THINK}|{END_THINK}", message["content"])]
    position = 0
    for text in filter(None, map(str.strip, texts)):
        position = answer.find(text, position)
        if position < 0:
            raise ConversationError(
                f"the chat template leaves out or moves a part of an answer, {text[:30]!r}: thoughts belong into "
                "`reasoning_content`, or once at the beginning of the content",
                "messages",
            )
        position += len(text)


def _opens_thought(prompt: str) -> bool:
    return prompt.rstrip().endswith(THINK)


def _no_turn() -> ConversationError:
    return ConversationError(
        "the chat template does not render each assistant message as a turn of its own", "messages"
    )
