"""Exported directories with damaged files: read as they are, or refused in one sentence that names the file."""

import dataclasses
import json
import random

import pytest
from convert_helpers import LLAMA, QWEN3, random_model
from llama_cpp_helpers import small_model, write_tokenizer

from convert.to_hf import export
from minimind_jax.errors import UserError
from minimind_jax.workdir import load_model

FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
NEEDED = FILES[:3]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    root = tmp_path_factory.mktemp("damage")
    words = write_tokenizer(root / "words", "", ["the cat and the dog 猫和狗"])
    export(small_model(words, QWEN3), root / "hf")
    return root / "hf"


def sentence(directory):
    """What loading says, None if it loads; fails where it raises anything but a UserError."""
    try:
        load_model(directory)
    except UserError as e:
        assert str(directory) in str(e) and len(str(e)) < 600 and "Traceback" not in str(e)
        return str(e)


def flips(content, seed, n=40):
    rng = random.Random(seed)
    for i in range(n):
        changed = bytearray(content)
        changed[rng.randrange(min(len(content), 2000) if i % 2 else len(content))] ^= 1 << rng.randrange(8)
        yield bytes(changed)


@pytest.mark.parametrize("name", FILES)
def test_any_damage_to_any_file_is_a_sentence_or_harmless(name, exported):
    file = exported / name
    content = file.read_bytes()
    assert sentence(exported) is None
    wrecked = [
        b"",
        content[: len(content) // 2],
        content[:100],
        bytes(len(content)),
        b"[" * 100_000,
        b"[]",
        b"null",
        b"3",
    ]
    try:
        for damaged in wrecked:
            file.write_bytes(damaged)
            assert (sentence(exported) is None) <= (name not in NEEDED), damaged[:20]
        for damaged in flips(content, name):
            file.write_bytes(damaged)
            sentence(exported)
        for key in json.loads(content) if name.endswith(".json") else ():
            for value in (None, [], {}, "x", -1, [None], True, 1e99):
                file.write_text(json.dumps(json.loads(content) | {key: value}))
                sentence(exported)
        file.unlink()
        assert (sentence(exported) is None) <= (name not in NEEDED)
    finally:
        file.write_bytes(content)


def test_the_index_and_the_parts_of_a_large_export(tmp_path):
    model = random_model(dataclasses.replace(LLAMA, vocab_size=6400))
    export(model, tmp_path / "hf", max_shard_bytes=10_000)
    index = tmp_path / "hf" / "model.safetensors.index.json"
    parts = sorted((tmp_path / "hf").glob("model-*.safetensors"))
    assert len(parts) > 2
    for file in (index, *parts):
        content = file.read_bytes()
        for damaged in (b"", content[:100], content[:-9], b'{"weight_map": 3}', b'{"weight_map": {"x": 1}}'):
            file.write_bytes(damaged)
            assert file.name in (sentence(tmp_path / "hf") or "")
        file.unlink()
        assert "lacks" in sentence(tmp_path / "hf") or file == index
        file.write_bytes(content)
    assert sentence(tmp_path / "hf") is None
