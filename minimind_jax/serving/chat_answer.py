"""Answers of /v1/chat/completions."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from minimind_jax.chat import AnswerParser, Content, Conversation, Part, Prompt, Thought
from minimind_jax.inference.constraint import Grammars
from minimind_jax.inference.request import Piece, Token
from minimind_jax.serving.answer import Answer, new_tokens_limit
from minimind_jax.serving.answer_grammar import chat_grammar, function_schemas
from minimind_jax.serving.conversation import read_conversation, render
from minimind_jax.serving.errors import bad_request
from minimind_jax.serving.form_parser import FormParser
from minimind_jax.serving.logprobs import chat_logprobs
from minimind_jax.serving.models import ServedModel
from minimind_jax.serving.requests import ChatRequest, NamedTool
from minimind_jax.serving.settings import Settings
from minimind_jax.tokenizer import Tokenizer


class ChatAnswer(Answer):
    """Thoughts, content and tool calls of each choice. Raises ApiError (400) for a request that cannot be answered."""

    id_prefix, object, chunk_object = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def __init__(self, request: ChatRequest, model: ServedModel, settings: Settings) -> None:
        engine = model.engine
        if request.top_logprobs and not request.logprobs:
            raise bad_request("`top_logprobs` needs `logprobs`: true", "top_logprobs")
        # Without a choice of tools the model is not told of any.
        conversation = read_conversation(request.messages, request.tools)
        if request.tool_choice == "none":
            conversation = replace(conversation, tools=None)
        _check_continuation(request, conversation)
        variables = request.chat_template_kwargs.model_extra
        prompt = render(engine.tokenizer, conversation, request.thinking, request.continue_final_message, variables)
        grammar = _grammar(engine.grammars, request, conversation.tools, prompt)
        limit = new_tokens_limit(request, len(prompt.tokens), engine.max_context, settings)
        top_logprobs = (request.top_logprobs or 0) if request.logprobs else -1
        options = request.options(limit, settings.temperature, settings.top_p, top_logprobs, grammar=grammar)

        def choice(_: int) -> _Choice:
            return _Choice(
                engine.tokenizer,
                FormParser(prompt.in_thought)
                if grammar
                else AnswerParser(prompt.in_thought, with_tools=bool(conversation.tools)),
                max_calls=None if request.parallel_tool_calls else 1,
                with_logprobs=request.logprobs,
            )

        super().__init__(request, model, [prompt.tokens], options, choice)

    def first_chunks(self) -> list[dict[str, Any]]:
        first = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return [self._chunk([{"index": index, **first}]) for index in range(len(self._choices))]


def _check_continuation(request: ChatRequest, conversation: Conversation) -> None:
    if not request.continue_final_message:
        if request.add_generation_prompt is False:
            message = "`add_generation_prompt`: false needs `continue_final_message`: true"
            raise bad_request(message, "add_generation_prompt")
        return
    if request.add_generation_prompt:
        message = "`continue_final_message` needs `add_generation_prompt`: false, as the last message goes on"
        raise bad_request(message, "add_generation_prompt")
    last = conversation.messages[-1]
    if last["role"] != "assistant" or last.get("tool_calls"):
        message = "`continue_final_message` needs a last message of the assistant without tool calls"
        raise bad_request(message, "messages")


def _grammar(
    grammars: Grammars, request: ChatRequest, tools: Sequence[Mapping[str, Any]] | None, prompt: Prompt
) -> str:
    """What the answer must look like; "" = it is free."""
    schema, choice = request.wanted_schema, request.tool_choice
    is_forced = choice not in ("none", "auto")
    if schema is None and not is_forced:
        return ""
    if request.continue_final_message:
        message = "`continue_final_message` goes together with neither a `response_format` nor a forced `tool_choice`"
        raise bad_request(message, "continue_final_message")
    if is_forced and not tools:
        raise bad_request("`tool_choice` forces a call, but there are no `tools`", "tool_choice")
    name = choice.function.name if isinstance(choice, NamedTool) else None
    grammar = chat_grammar(
        grammars,
        None if is_forced else schema,
        function_schemas(tools, name) if tools else {},
        several_calls=request.parallel_tool_calls and name is None,
        thoughts="open" if prompt.in_thought else "may" if request.thinking else "",
    )
    grammars.constraint(grammar)  # compiled here, as the engine's thread has other work
    return grammar


class _Choice:
    def __init__(
        self, tokenizer: Tokenizer, parser: AnswerParser | FormParser, max_calls: int | None, with_logprobs: bool
    ) -> None:
        self._tokenizer, self._parser, self._max_calls = tokenizer, parser, max_calls
        self._with_logprobs = with_logprobs
        self._tokens: list[Token] = []  # of which no chunk has told yet
        self._thoughts: list[str] = []
        self._content: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] = []
        self._finish_reason: str | None = None

    def push(self, piece: Piece) -> list[dict[str, Any]]:
        self._tokens += piece.tokens
        parts = self._parser.push(piece.text)
        if piece.finish_reason:
            parts += self._parser.finish()
        deltas = [delta for part in parts if (delta := self._delta(part))]
        if piece.finish_reason:
            called = self._calls and piece.finish_reason == "stop"
            self._finish_reason = "tool_calls" if called else piece.finish_reason
            deltas.append({})
        chunks: list[dict[str, Any]] = [{"delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas]
        if chunks:
            chunks[0]["logprobs"] = self._take_logprobs()
            chunks[-1]["finish_reason"] = self._finish_reason
        return chunks

    def whole(self) -> dict[str, Any]:
        content = "".join(self._content)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content or (None if self._calls else ""),
            "refusal": None,
        }
        if self._thoughts:
            message["reasoning_content"] = "".join(self._thoughts)
        if self._calls:
            message["tool_calls"] = self._calls
        logprobs = {"content": self._logprobs, "refusal": None} if self._with_logprobs else None
        return {"message": message, "logprobs": logprobs, "finish_reason": self._finish_reason}

    def _delta(self, part: Part) -> dict[str, Any]:
        if isinstance(part, Thought):
            self._thoughts.append(part.text)
            return {"reasoning_content": part.text}
        if isinstance(part, Content):
            self._content.append(part.text)
            return {"content": part.text}
        index = len(self._calls)
        if index == self._max_calls:
            return {}
        function = {"name": part.name, "arguments": part.arguments}
        call = {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
        self._calls.append(call)
        return {"tool_calls": [{"index": index, **call}]}

    def _take_logprobs(self) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        entries = chat_logprobs(self._tokenizer, self._tokens)
        self._tokens = []
        self._logprobs += entries
        return {"content": entries, "refusal": None}
