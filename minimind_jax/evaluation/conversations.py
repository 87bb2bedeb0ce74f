"""Held-out loss and bits per byte on conversations: the assistant's tokens, given everything before them.

Rendered and masked as SFT has them, without its augmentations: see `chat.encoding`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from minimind_jax.chat import TARGET, EncodedChat, target_bytes
from minimind_jax.data.progress import Progress
from minimind_jax.evaluation.scoring import BATCH_TOKENS, Document, TextScore, score_documents
from minimind_jax.workdir import LoadedModel


def score_conversations(
    model: LoadedModel, chats: Iterable[EncodedChat], batch_tokens: int = BATCH_TOKENS, progress: Progress | None = None
) -> TextScore:
    """`score_documents` of conversations; what lies beyond the model's limit is not scored."""
    return score_documents(model, _documents(model, chats), batch_tokens, progress)


def _documents(model: LoadedModel, chats: Iterable[EncodedChat]) -> Iterator[Document]:
    limit = model.config.max_seq_len
    for chat in chats:
        is_target = np.frombuffer(chat.flags, np.uint8) & TARGET > 0
        if len(chat.tokens) <= limit:
            yield Document(chat.tokens, is_target, chat.n_bytes)
        else:
            ids, is_target = chat.tokens[:limit], is_target[:limit]
            yield Document(ids, is_target, target_bytes(model.tokenizer, ids, is_target), truncated=True)
