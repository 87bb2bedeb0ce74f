"""Which entry of one tokenizer is which of another: told by text, however ids and files differ."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizer_variants import write_variant
from tokenizers import decoders, models, pre_tokenizers

from minimind_jax.tokenizer import counterparts, load_tokenizer

SHIPPED = load_tokenizer()


@pytest.mark.parametrize(
    "changes",
    [{}, {"shuffle": 1}, {"n_merges": 900}, {"n_merges": 500, "shuffle": 2}, {"added": ("<a>", "<b>"), "shuffle": 3}],
    ids=str,
)
def test_the_same_text_is_found_wherever_its_id_is(changes, tmp_path):
    other = load_tokenizer(str(write_variant(tmp_path / "other", **changes)))
    for old, new in ((SHIPPED, other), (other, SHIPPED), (other, other)):
        ids = counterparts(old, new)
        assert ids.shape == (new.vocab_size,)
        for entry, i in new.vocabulary.items():
            assert ids[i] == old.vocabulary.get(entry, -1), entry
    assert (counterparts(SHIPPED, other) < 0).sum() == len(changes.get("added", ()))


def write_sentencepiece_like(directory: Path, entries: list[str]) -> Path:
    """A BPE without merges that writes a space as ▁ and unknown bytes as <0xNN>, as Llama 2's does."""
    vocab = {entry: i for i, entry in enumerate(entries)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    directory.mkdir()
    backend.save(str(directory / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def test_another_notation_of_the_same_text(tmp_path):
    entries = ["<unk>", "<s>", "</s>", "<0x41>", "<0xE4>", "a", "▁the", "the", "▁", "中", "A", "▁zqzq"]
    theirs = load_tokenizer(str(write_sentencepiece_like(tmp_path / "sp", entries)))
    ids = dict(zip(entries, counterparts(SHIPPED, theirs), strict=True))
    ours = SHIPPED.vocabulary
    expected = {"a": "a", "▁the": "Ġthe", "the": "the", "▁": "Ġ", "中": "ä¸Ń", "A": "A", "<0xE4>": "ä", "<0x41>": "A"}
    assert {entry: ids[entry] for entry in expected} == {entry: ours[other] for entry, other in expected.items()}
    assert ids["▁zqzq"] == ids["<s>"] == -1
    back = counterparts(theirs, SHIPPED)
    assert back[ours["A"]] in (entries.index("A"), entries.index("<0x41>"))
    assert back[ours["Ġthe"]] == entries.index("▁the")


def test_of_two_entries_with_one_text_the_same_spelling_wins(tmp_path):
    """An added token may spell what bytes spell: 中 as itself, and as the three bytes of its UTF-8."""
    other = load_tokenizer(str(write_variant(tmp_path / "other", added=("中", "<x>"))))
    both = [other.vocabulary["中"], other.vocabulary["ä¸Ń"]]
    assert {other.token_bytes(i) for i in both} == {"中".encode()}
    ids = counterparts(other, other)
    assert [ids[i] for i in both] == both
