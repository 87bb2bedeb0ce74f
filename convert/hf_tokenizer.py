"""The tokenizer of an export, in the form that transformers 4.57 and 5.x both read alike.

Directories from elsewhere hold what one version alone understands (the class TokenizersBackend, a list
`extra_special_tokens`), what needs code from elsewhere (`auto_map`), and what would change ids on loading: classes that
rebuild a tokenizer by rules of their own, a second list of added tokens, special tokens that have no id. So
tokenizer.json alone is copied, and beside it stands only what it does not say.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minimind_jax.errors import UserError
from minimind_jax.tokenizer import Tokenizer

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_KEPT = ("add_bos_token", "add_eos_token", "model_max_length", "padding_side", "truncation_side")
_LISTS = ("additional_special_tokens", "extra_special_tokens")


def write_tokenizer(directory: Path, tokenizer: Tokenizer) -> None:
    """Writes tokenizer.json, tokenizer_config.json and the chat templates.

    Raises:
      UserError: a chat template's name is none that a file can have.
    """
    shutil.copyfile(tokenizer.path / "tokenizer.json", directory / "tokenizer.json")
    config = json.dumps(tokenizer_config(tokenizer), indent=2, ensure_ascii=False)
    (directory / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
    for name, template in tokenizer.template_source.items():
        file = directory / "chat_template.jinja"
        if name != "default":
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise UserError(f"{tokenizer.path} names a chat template {name!r}: take a name of letters and digits")
            file = directory / "additional_chat_templates" / f"{name}.jinja"
            file.parent.mkdir(exist_ok=True)
        file.write_text(_as_in_files(template), encoding="utf-8")


def meaning(tokenizer: Tokenizer) -> tuple[Any, ...]:
    """All of a tokenizer that decides ids and texts, to compare."""
    templates = {name: _as_in_files(text) for name, text in tokenizer.template_source.items()}
    return tokenizer.rules, templates, tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    config = tokenizer.config
    named = {key: tokenizer.special_tokens.get(key) for key in _NAMED}
    others = [text for text in dict.fromkeys(_other_special(config)) if text not in named.values()]
    known = tokenizer.vocabulary.keys()
    values: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    # A special token without an id would be given one, beyond the model's rows.
    values |= {key: text for key, text in named.items() if text in known}
    if others := [text for text in others if text in known]:
        values["additional_special_tokens"] = others  # both read it; 5.x calls it extra_special_tokens
    values |= {key: config[key] for key in _KEPT if key in config}
    # transformers 4 changes the splitting where this and tokenizer.json disagree.
    values["add_prefix_space"] = _adds_prefix_space(tokenizer)
    values["clean_up_tokenization_spaces"] = config.get("clean_up_tokenization_spaces") is True
    values["model_input_names"] = ["input_ids", "attention_mask"]  # Llama and Qwen3 take no token_type_ids
    return values


def _as_in_files(text: str) -> str:
    """A text in JSON may end lines by \\r\\n, which is \\n once a file is read, and for Jinja in any case."""
    return re.sub(r"\r\n?", "\n", text)


def _other_special(config: Mapping[str, Any]) -> Iterator[str]:
    """Special tokens without one of transformers' own names, as any version writes them."""
    for key in _LISTS:
        entries = config.get(key) or []
        for entry in entries.values() if isinstance(entries, dict) else entries:
            text = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(text, str):
                yield text


def _adds_prefix_space(tokenizer: Tokenizer) -> bool:
    spec = json.loads((tokenizer.path / "tokenizer.json").read_text("utf-8"))
    return bool((spec.get("pre_tokenizer") or {}).get("add_prefix_space"))
