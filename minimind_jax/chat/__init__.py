"""What a conversation is: read, checked, rendered by any chat template, encoded, and its answers taken apart again."""

from minimind_jax.chat.answer_parser import AnswerParser, Content, Part, Thought, ToolCall
from minimind_jax.chat.conversation import (
    Conversation,
    ConversationError,
    check_text,
    read_messages,
    read_tools,
)
from minimind_jax.chat.encoding import EMPTY_THINK, TARGET, ChatEncoder, EncodedChat, target_bytes
from minimind_jax.chat.records import ConversationRecord, PairRecord, read_conversation, read_pair
from minimind_jax.chat.template import RESERVED, ChatTemplate, Prompt, chat_template

__all__ = [
    "EMPTY_THINK",
    "RESERVED",
    "TARGET",
    "AnswerParser",
    "ChatEncoder",
    "ChatTemplate",
    "Content",
    "Conversation",
    "ConversationError",
    "ConversationRecord",
    "EncodedChat",
    "PairRecord",
    "Part",
    "Prompt",
    "Thought",
    "ToolCall",
    "chat_template",
    "check_text",
    "read_conversation",
    "read_messages",
    "read_pair",
    "read_tools",
    "target_bytes",
]
