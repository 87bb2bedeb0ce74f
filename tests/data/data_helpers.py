"""A tokenizer small enough to check by hand, and jsonl files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers


class ByteTokenizer:
    """One token a UTF-8 byte, after pad, bos and eos."""

    pad_id, bos_id, eos_id = 0, 1, 2
    control_tokens: ClassVar[dict[str, int]] = {"<pad>": 0, "<bos>": 1, "<eos>": 2}
    path = Path("nowhere")

    def __init__(self, vocab_size: int = 259, shift: int = 3) -> None:
        self.vocab_size = vocab_size
        self.shift = shift
        self.fingerprint = f"bytes-{vocab_size}-{shift}"

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[byte + self.shift for byte in text.encode()] for text in texts]

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        names = {0: "<pad>", 1: "<bos>", 2: "<eos>"}
        pieces = [
            ("" if skip_special_tokens else names[i]).encode() if i in names else bytes([i - self.shift]) for i in ids
        ]
        return b"".join(pieces).decode(errors="replace")


class BrokenTokenizer(ByteTokenizer):
    """Cannot encode: whoever uses it reads a store that is there."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        raise AssertionError("tokenised again")


def write_jsonl(path: Path, texts: Iterable[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
    return path


def save_tokenizer(directory: Path) -> Path:
    """A byte-level BPE of a few merges, as a directory that worker processes can load."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the sea was calm", "潮水退了"] * 9, trainer)
    directory.mkdir()
    backend.save(str(directory / "tokenizer.json"))
    config = dict(zip(("pad_token", "bos_token", "eos_token"), special, strict=True))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory
