"""Scores a held-out file, of texts or of conversations."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

from minimind_jax.chat import ChatEncoder, ConversationError, EncodedChat
from minimind_jax.data.chat import as_line_error, parse_conversation
from minimind_jax.data.jsonl import N_REPORTED, BadLine, Record, check_bad_lines, parse_object, parse_text, read_jsonl
from minimind_jax.data.progress import Progress
from minimind_jax.errors import UserError
from minimind_jax.evaluation.conversations import score_conversations
from minimind_jax.evaluation.scoring import BATCH_TOKENS, TextScore
from minimind_jax.evaluation.task import spread
from minimind_jax.evaluation.text import score_texts
from minimind_jax.files import locate
from minimind_jax.workdir import LoadedModel

MAX_BAD_SHARE = 0.01
_CONVERSATIONS = ("conversations", "messages", "instruction", "prompt")  # what the forms of conversations have


def evaluate_file(
    model: LoadedModel, path: Path, batch_tokens: int = BATCH_TOKENS, limit: int | None = None
) -> TextScore:
    """Scores a file of {"text": ...} records, or one of conversations in any form that SFT reads.

    It may have any form that `files` knows. The first record that has a field of theirs says which; then all have to be
    of that kind.

    Args:
      path: the file; it is read twice, in bounded memory, so that bad lines are known before the long work.
      batch_tokens: padded tokens in one forward pass; a longer document goes alone.
      limit: records that are scored, evenly spread over the file; None = all.

    Raises:
      UserError: no such file, no usable line, more than 1 % bad lines, a file of pairs or of questions, or what
        `score_documents` raises.
    """
    if _holds_conversations(path):
        encoder = ChatEncoder(model.tokenizer)

        def parse(line: bytes) -> list[EncodedChat]:
            conversation = parse_conversation(line).conversation
            try:
                return encoder.encode(conversation)
            except ConversationError as e:
                raise as_line_error(e) from None

        return _score(model, path, parse, _score_sequences, batch_tokens, limit)
    return _score(model, path, parse_text, score_texts, batch_tokens, limit)


def _score_sequences(
    model: LoadedModel, conversations: Iterable[list[EncodedChat]], batch_tokens: int, progress: Progress
) -> TextScore:
    return score_conversations(model, itertools.chain.from_iterable(conversations), batch_tokens, progress)


def _holds_conversations(path: Path) -> bool:
    for number, record in read_jsonl(path, parse_object):
        if isinstance(record, BadLine):
            continue
        if "gt" in record and not _is_answered(record):
            raise UserError(f"{locate(path, number)} is a question, not held-out text: evaluate it by --task questions")
        if "chosen" in record:
            raise UserError(f"{locate(path, number)} is a preference pair: give a file of texts or conversations")
        if "text" in record or any(field in record for field in _CONVERSATIONS):
            return "text" not in record
    return False


def _is_answered(record: dict[str, object]) -> bool:
    messages = record.get("conversations")
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and last.get("role") == "assistant"


def _score(
    model: LoadedModel,
    path: Path,
    parse: Callable[[bytes], Record],
    score: Callable[..., TextScore],
    batch_tokens: int,
    limit: int | None,
) -> TextScore:
    n_lines, n_bad = 0, 0
    first_bad: list[BadLine] = []
    for _, record in read_jsonl(path, parse):
        n_lines += 1
        if isinstance(record, BadLine):
            n_bad += 1
            if len(first_bad) < N_REPORTED:
                first_bad.append(record)
    if warning := check_bad_lines(path, n_lines, n_bad, first_bad, MAX_BAD_SHARE):
        print(warning, flush=True)

    n_good = n_lines - n_bad
    chosen = set(spread(range(n_good), limit)) if limit is not None else range(n_good)
    good = (record for _, record in read_jsonl(path, parse) if not isinstance(record, BadLine))
    records = (record for number, record in enumerate(good) if number in chosen)
    progress = Progress(f"scoring {path}", len(chosen))
    result = score(model, records, batch_tokens, progress)
    progress.close(result.target_tokens)
    return dataclasses.replace(result, bad_lines=n_bad)
