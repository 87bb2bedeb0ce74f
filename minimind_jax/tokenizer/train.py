"""Trains a byte-level BPE on bilingual jsonl and writes a directory that `AutoTokenizer.from_pretrained` loads."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from minimind_jax.errors import UserError
from minimind_jax.tokenizer.corpus import LANGUAGES, Corpus, Language, language_of, position

CHAT_TEMPLATE = Path(__file__).parent / "chat_template.jinja"

PAD, BOS, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
RESERVED = tuple(f"<|reserved_{n}|>" for n in range(7))
CONTROL_TOKENS = (PAD, BOS, EOS, *MARKS, *RESERVED)  # ids 0 to 15

# Qwen2's, which llama.cpp knows as pre-tokenizer `qwen2`: words with one leading space or sign, single digits.
PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

MIN_VOCAB_SIZE = len(CONTROL_TOKENS) + 256
MODEL_MAX_LENGTH = 32768


@dataclass
class Sample:
    """The documents of a corpus that a tokenizer is trained on; `characters` counts them in the latest pass."""

    corpus: Corpus
    shares: dict[Language, float]  # of each language's documents
    characters: dict[Language, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[str]:
        self.characters = dict.fromkeys(LANGUAGES, 0)
        for text in self.corpus:
            language = language_of(text)
            # Another salt than the hold-out's, or a share would fall on what that left over.
            if position(text, "sample") < self.shares[language]:
                self.characters[language] += len(text)
                yield text


def train(corpus: Corpus, vocab_size: int, out: Path, english_per_chinese: float, show_progress: bool) -> Sample:
    """Trains a tokenizer of `vocab_size` entries, control tokens and the 256 bytes included, and writes it to `out`.

    Reads the corpus twice: to count, and to train. The same documents give the same bytes, in any order.

    Args:
      corpus: the documents.
      vocab_size: at least MIN_VOCAB_SIZE.
      out: a directory that is missing or empty; it appears complete or not at all.
      english_per_chinese: English characters for each Chinese one; documents of the language that there is too much
        of are left out, evenly. 0 takes all.
      show_progress: whether to draw the library's progress bars.

    Raises:
      UserError: `out` is not empty or not writable, `vocab_size` is too small or too big for the data, no usable text.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(
            f"--vocab-size {vocab_size} is too small: {len(CONTROL_TOKENS)} control tokens and 256 bytes need "
            f"{MIN_VOCAB_SIZE}"
        )
    with _new_directory(out) as directory:
        sample = Sample(corpus, _plan_shares(corpus, english_per_chinese))
        tokenizer = train_bpe(iter(sample), vocab_size, show_progress)
        if tokenizer.get_vocab_size() < vocab_size:
            raise UserError(
                f"the data yield only {tokenizer.get_vocab_size()} entries, not --vocab-size {vocab_size}: "
                "give more data or lower it"
            )
        _write_files(tokenizer, directory)
    return sample


def train_bpe(texts: Iterator[str], vocab_size: int, show_progress: bool) -> Tokenizer:
    """A byte-level BPE without normalizer, so that decoding gives back every text, with the control tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[AddedToken(token, normalized=False) for token in CONTROL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _with_visible_marks(tokenizer)


def _with_visible_marks(tokenizer: Tokenizer) -> Tokenizer:
    """The same with MARKS not `special`, which the trainer makes all it is given: decoding shall show them."""
    spec = json.loads(tokenizer.to_str())
    for token in spec["added_tokens"]:
        token["special"] = token["content"] not in MARKS
    return Tokenizer.from_str(json.dumps(spec))


def _write_files(tokenizer: Tokenizer, directory: Path) -> None:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "bos_token": BOS,
        "eos_token": EOS,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MODEL_MAX_LENGTH,
    }
    # Not by the library's own save: that hides a full disk behind a bare Exception.
    (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(CHAT_TEMPLATE, directory / CHAT_TEMPLATE.name)


def _plan_shares(corpus: Corpus, english_per_chinese: float) -> dict[Language, float]:
    """The share of each language's documents to take, the greater one 1. Raises UserError without usable text."""
    total: dict[Language, int] = dict.fromkeys(LANGUAGES, 0)
    for text in corpus:
        total[language_of(text)] += len(text)
    if not any(total.values()):
        first = f" (first unusable line: {corpus.skipped.first})" if corpus.skipped.count else ""
        raise UserError(
            f"no usable text in {', '.join(map(str, corpus.paths))}: expected jsonl with text, conversations, "
            f"or chosen and rejected{first}"
        )
    if not (english_per_chinese and all(total.values())):
        return dict.fromkeys(LANGUAGES, 1.0)
    surplus = total["en"] / (english_per_chinese * total["zh"])
    return {"zh": min(1.0, surplus), "en": min(1.0, 1 / surplus)}


@contextmanager
def _new_directory(out: Path) -> Iterator[Path]:
    """Yields a temporary directory that becomes `out` where the block ends well, and vanishes where it does not."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not an empty directory: remove it or name another")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as e:
        raise UserError(f"--out {out} cannot be written: {e.strerror}") from e
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes it private
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
