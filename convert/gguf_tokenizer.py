"""A tokenizer directory as the vocabulary of a GGUF file: what llama.cpp needs to make the same tokens of a text.

llama.cpp holds the regular expressions that split text before BPE under names (`tokenizer.ggml.pre`, llama-vocab.cpp);
a file cannot bring its own. So a tokenizer.json is taken only if its pre-tokenizer is one of those in `_SPLITS`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gguf
from tokenizers.pre_tokenizers import ByteLevel

from minimind_jax.errors import UserError
from minimind_jax.tokenizer import Tokenizer

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Regular expression of a Split before ByteLevel -> name in llama.cpp, and whether that ignores merges for whole words.
_SPLITS = {_WORDS % "": ("qwen2", False), _WORDS % "{1,3}": ("llama-bpe", True)}
_GPT2 = ("gpt-2", False)  # ByteLevel's own regular expression


@dataclass(frozen=True)
class Vocabulary:
    """The `tokenizer.*` part of a GGUF file.

    Attributes:
      pre: llama.cpp's name of the pre-tokenizer.
      tokens: text of each id, in byte-level symbols; ids that stand for nothing are `[PAD<id>]`.
      types: `gguf.TokenType` of each id.
      merges: "left right", most frequent first.
      templates: chat templates by name, "default" being the usual one; may be empty.
      caveat: what llama.cpp does differently all the same; "" where nothing.
    """

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    bos_id: int
    eos_id: int
    pad_id: int
    templates: dict[str, str]
    caveat: str

    def metadata(self) -> dict[str, Any]:
        """GGUF keys and values."""
        keys = gguf.Keys.Tokenizer
        values: dict[str, Any] = {
            keys.MODEL: "gpt2",
            keys.PRE: self.pre,
            keys.LIST: self.tokens,
            keys.TOKEN_TYPE: self.types,
            keys.MERGES: self.merges,
            keys.BOS_ID: self.bos_id,
            keys.EOS_ID: self.eos_id,
            keys.PAD_ID: self.pad_id,
            keys.ADD_BOS: False,  # the chat template writes what it needs
            keys.ADD_EOS: False,
        }
        for name, template in self.templates.items():
            values[keys.CHAT_TEMPLATE if name == "default" else keys.CHAT_TEMPLATE_N.format(name=name)] = template
        if others := [name for name in self.templates if name != "default"]:
            values[keys.CHAT_TEMPLATES] = others
        return values


def vocabulary(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """The vocabulary of a model with `size` embedding rows.

    Raises:
      UserError: llama.cpp would make other tokens of a text than tokenizer.json.
    """
    file = tokenizer.path / "tokenizer.json"
    spec = json.loads(file.read_text(encoding="utf-8"))
    try:
        pre = _pre_type(spec)
        _check_model(spec["model"], pre)
        caveat = _caveat(spec.get("normalizer"))
        tokens, types = _tokens(spec, size)
    except UserError as e:
        raise UserError(f"{file} has no equal in llama.cpp: {e}") from None
    return Vocabulary(
        pre=pre[0],
        tokens=tokens,
        types=types,
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]],
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        templates=dict(tokenizer.template_source),
        caveat=caveat,
    )


def _pre_type(spec: Mapping[str, Any]) -> tuple[str, bool]:
    """llama.cpp's name of the pre-tokenizer, and whether that one ignores merges for words in the vocabulary."""
    steps = _steps(spec.get("pre_tokenizer"), "pretokenizers")
    kinds = [step["type"] for step in steps]
    if not steps or kinds[-1] != "ByteLevel":
        raise UserError(f"its pre-tokenizer ({', '.join(kinds) or 'none'}) does not end in ByteLevel")
    if steps[-1].get("add_prefix_space", True):
        raise UserError("its pre-tokenizer puts a space before every text (add_prefix_space)")
    own_regex = steps[-1].get("use_regex", True)
    if kinds == ["ByteLevel"] and own_regex:
        return _GPT2
    if kinds == ["Split", "ByteLevel"] and not own_regex:
        split = steps[0]
        known = _SPLITS.get(split["pattern"].get("Regex"))
        if known and split["behavior"] == "Isolated" and not split["invert"]:
            return known
    raise UserError(
        f"its pre-tokenizer ({', '.join(kinds)}) splits text in none of the ways that are known to agree "
        "(gpt-2, qwen2, llama-bpe); train one with python -m minimind_jax.tokenizer train"
    )


def _check_model(model: Mapping[str, Any], pre: tuple[str, bool]) -> None:
    if model.get("type") != "BPE":
        raise UserError(f"its model is {model.get('type')}, not byte-level BPE")
    for key in ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UserError(f"its BPE has {key}={model[key]!r}")
    if bool(model.get("ignore_merges")) != pre[1]:
        raise UserError(f"its BPE has ignore_merges={not pre[1]}, which llama.cpp's pre-tokenizer {pre[0]} has not")
    if missing := sorted(set(ByteLevel.alphabet()) - set(model["vocab"])):
        raise UserError(f"its BPE lacks {len(missing)} of the 256 bytes, such as {missing[0]!r}")
    if not model["merges"]:
        raise UserError("its BPE has no merges")


def _caveat(normalizer: Mapping[str, Any] | None) -> str:
    kinds = [step["type"] for step in _steps(normalizer, "normalizers")]
    if kinds == ["NFC"]:  # Qwen2 and Qwen3; llama.cpp's own converter leaves it out too
        return "llama.cpp does not normalise text to NFC as this tokenizer does: decomposed accents become other tokens"
    if kinds:
        raise UserError(f"it normalises text ({', '.join(kinds)})")
    return ""


def _tokens(spec: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [int(gguf.TokenType.UNUSED)] * size
    for token, i in spec["model"]["vocab"].items():
        tokens[i], types[i] = token, gguf.TokenType.NORMAL.value
    for token in spec.get("added_tokens") or []:
        for key in ("lstrip", "rstrip", "single_word"):
            if token.get(key):
                raise UserError(f"its added token {token['content']!r} has {key}=true")
        # As in Qwen3's files: llama.cpp shows user-defined tokens in its output, and finds them in any text.
        kind = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        tokens[token["id"]], types[token["id"]] = token["content"], kind.value
    return tokens, types


def _steps(node: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    """The members of a `Sequence`, or the one step that stands alone."""
    if node is None:
        return []
    return node[key] if node["type"] == "Sequence" else [node]
