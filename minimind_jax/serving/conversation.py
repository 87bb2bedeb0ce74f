"""Messages and tools of chat requests: `minimind_jax.chat` reads and renders them, its errors become the API's 400."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from minimind_jax.chat import Conversation, ConversationError, Prompt, chat_template, read_messages, read_tools
from minimind_jax.errors import UserError
from minimind_jax.serving.errors import bad_request
from minimind_jax.tokenizer import Tokenizer


def read_conversation(messages: Sequence[Any], tools: Sequence[Any]) -> Conversation:
    """The conversation of a request. Raises ApiError (400), which names the field that is missing or wrong."""
    with _bad_requests():
        conversation = read_messages(list(messages), "messages")
        beside = read_tools(list(tools), "tools")
    if beside and conversation.tools:
        raise bad_request("`tools` stand both beside the messages and on the first of them: keep one", "tools")
    return replace(conversation, tools=beside or conversation.tools)


def render(
    tokenizer: Tokenizer,
    conversation: Conversation,
    thinking: bool | None = None,
    continue_final: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> Prompt:
    """The prompt for the assistant's next message, or for the rest of its last one.

    Args:
      thinking: None = as the template has it without thoughts.
      continue_final: the last message is the assistant's and is to be continued.
      variables: more of the template's variables.

    Raises:
      ApiError: 400, the template refuses the conversation, or has no such switch for thinking.
    """
    template = chat_template(tokenizer)
    if thinking is not None:
        try:
            template.check_switch(thinking)
        except UserError as e:
            raise bad_request(str(e), "enable_thinking") from None
    with _bad_requests():
        if continue_final:
            return template.unfinished(conversation)
        return template.prompt(conversation, bool(thinking), variables)


@contextmanager
def _bad_requests() -> Iterator[None]:
    try:
        yield
    except ConversationError as e:
        raise bad_request(str(e), e.field or "messages") from None
