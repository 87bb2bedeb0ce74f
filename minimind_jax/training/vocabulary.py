"""`init_from` under a tokenizer: its own, one that only writes chats otherwise, or another vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from minimind_jax import workdir as workdirs
from minimind_jax.config import Config
from minimind_jax.errors import UserError
from minimind_jax.model import Params, resize_vocabulary
from minimind_jax.tokenizer import Tokenizer, counterparts, load_tokenizer

_MULTIPLE = 128  # of the rows that a changed vocabulary gets: what matrix units like


def fit_vocabulary(
    config: Config, tokenizer: Tokenizer, recipe: Mapping[str, Any], user_set: Collection[str]
) -> tuple[Config, str]:
    """A new run's config with the vocabulary that its `init_from` has under `tokenizer`.

    Args:
      recipe, user_set: what `config` was made of: a model.vocab_size that the user has set counts.

    Returns:
      The config, and what a user should know of the difference ("" = there is none).

    Raises:
      UserError: the entries of `tokenizer` are not those of `init_from`, or more than its rows, and
        tokenizer_change is not resize; or the size that is set is too small.
    """
    source, old_rows = config.init_from, workdirs.model_config(config.init_from).vocab_size
    old = load_tokenizer(str(workdirs.tokenizer_directory(source)))
    size = config.model.vocab_size
    same = old.vocabulary == tokenizer.vocabulary
    fits = tokenizer.vocab_size <= old_rows
    if config.tokenizer_change == "refuse":
        if same and fits:
            return config, _other_rules(old, tokenizer)
        raise UserError(_refusal(config, old, tokenizer, old_rows))
    size_is_set = "model.vocab_size" in user_set and recipe["model"]["vocab_size"]
    if not size_is_set and not (same and fits):
        size = -(-tokenizer.vocab_size // _MULTIPLE) * _MULTIPLE
    if size < tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size={size} is less than the {tokenizer.vocab_size} entries of tokenizer {tokenizer.path}: "
            "set it to that or more, or leave it unset"
        )
    rows = _old_rows(old, tokenizer, size, old_rows)
    kept, entries = int((rows >= 0).sum()), len(set(tokenizer.vocabulary.values()))
    said = (
        f"vocabulary of {source} resized from {old_rows} to {size} rows: {kept} of {entries} tokens keep theirs, "
        f"{entries - kept} begin at the mean"
    )
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))
    return config, said if size != old_rows or not same else _other_rules(old, tokenizer)


def load_initial(config: Config, tokenizer: Tokenizer) -> Params:
    """The weights of `init_from` as float32 numpy arrays, their vocabulary that of `tokenizer` and model.vocab_size."""
    model, params = workdirs.load_init(config.init_from)
    old = load_tokenizer(str(workdirs.tokenizer_directory(config.init_from)))
    size, old_rows = config.model.vocab_size, model.vocab_size
    if size == old_rows and old.vocabulary == tokenizer.vocabulary:
        return params
    known = sorted(i for i in set(old.vocabulary.values()) if i < old_rows)
    return resize_vocabulary(params, _old_rows(old, tokenizer, size, old_rows), np.asarray(known))


def _old_rows(old: Tokenizer, new: Tokenizer, size: int, old_rows: int) -> np.ndarray:
    """For each of `size` rows the row of the same token, -1 for none."""
    rows = np.full(size, -1)
    rows[: new.vocab_size] = counterparts(old, new)
    rows[rows >= old_rows] = -1
    return rows


def _refusal(config: Config, old: Tokenizer, new: Tokenizer, old_rows: int) -> str:
    resize = "set --config.tokenizer_change=resize to keep the rows of its tokens and begin the others at their mean"
    if old.vocabulary == new.vocabulary:
        return (
            f"tokenizer {new.path} has {new.vocab_size} entries, the model of init_from {config.init_from} only "
            f"{old_rows} rows: {resize}"
        )
    theirs = old.vocabulary
    odd = sorted((i, entry) for entry, i in new.vocabulary.items() if theirs.get(entry) != i)
    odd = odd or sorted((i, entry) for entry, i in theirs.items() if entry not in new.vocabulary)
    own = ", or leave --config.tokenizer unset to take the model's own" if config.tokenizer else ""
    return (
        f"tokenizer {new.path} is not the one that init_from {config.init_from} was trained with: of "
        f"{len(new.vocabulary)} and {len(theirs)} entries {len(new.vocabulary.items() & theirs.items())} have the same "
        f"id, {odd[0][1]!r} (id {odd[0][0]}) has not; {resize}{own}"
    )


def _other_rules(old: Tokenizer, new: Tokenizer) -> str:
    """What differs between tokenizers of one vocabulary, for the user; "" if nothing does."""

    def differences() -> Iterator[str]:
        if old.rules != new.rules:
            yield "rules that cut text into tokens"
        if old.template_source != new.template_source:
            yield "chat template"
        if (old.pad_id, old.bos_id, old.eos_id) != (new.pad_id, new.bos_id, new.eos_id):
            yield "pad, bos or eos token"

    if found := " and ".join(differences()):
        return f"{new.path} has the entries of {old.path}, but another {found}: the new one counts"
    return ""
