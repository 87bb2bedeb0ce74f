"""Tokenizer directories that differ from the shipped one in a known way."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from minimind_jax.tokenizer.load import SHIPPED


def write_variant(
    directory: Path,
    *,
    n_merges: int | None = None,
    shuffle: int | None = None,
    added: tuple[str, ...] = (),
    template: str | None = None,
) -> Path:
    """A copy of the shipped tokenizer with changes.

    Args:
      n_merges: keep the first ones only, and the entries that they make.
      shuffle: seed of a permutation of all ids.
      added: special tokens at the end.
      template: a chat template instead of its own.
    """
    spec = json.loads((SHIPPED / "tokenizer.json").read_text("utf-8"))
    model: dict[str, Any] = spec["model"]
    merged = [left + right for left, right in model["merges"]]
    if n_merges is not None:
        gone = set(merged[n_merges:]) - set(merged[:n_merges])
        model["merges"] = model["merges"][:n_merges]
        model["vocab"] = {entry: i for entry, i in model["vocab"].items() if entry not in gone}
    entries = sorted(model["vocab"], key=model["vocab"].__getitem__)
    if shuffle is not None:
        random.Random(shuffle).shuffle(entries)
    model["vocab"] = ids = {entry: i for i, entry in enumerate(entries)}
    spec["added_tokens"] = [token | {"id": ids[token["content"]]} for token in spec["added_tokens"]]
    for i, content in enumerate(added, len(ids)):
        spec["added_tokens"].append(spec["added_tokens"][0] | {"id": i, "content": content, "special": True})
    directory.mkdir(parents=True)
    (directory / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False), "utf-8")
    (directory / "tokenizer_config.json").write_bytes((SHIPPED / "tokenizer_config.json").read_bytes())
    own = (SHIPPED / "chat_template.jinja").read_text("utf-8")
    (directory / "chat_template.jinja").write_text(own if template is None else template, "utf-8")
    return directory
