"""Tokenizers that llama.cpp would apply in another way are refused, and chat templates that ollama's form lacks."""

import dataclasses
import json

import pytest
from convert_helpers import LLAMA, random_params
from llama_cpp_helpers import small_model, write_tokenizer

from convert import to_gguf
from convert.to_gguf import export
from minimind_jax.errors import UserError
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.tokenizer.train import PRE_TOKENIZER
from minimind_jax.workdir import Workdir, save_imported


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A small tokenizer directory to break."""
    return write_tokenizer(tmp_path_factory.mktemp("words") / "tokenizer", "", ["the cat and the dog 猫和狗" * 3])


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
DIGITS = {"type": "Digits", "individual_digits": True}


def split(**changes):
    """The shipped tokenizer's, changed."""
    return {"type": "Split", "pattern": {"Regex": PRE_TOKENIZER}, "behavior": "Isolated", "invert": False} | changes


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pre_tokenizer": None}, r"pre-tokenizer \(none\) does not end in ByteLevel"),
        ({"pre_tokenizer": DIGITS}, r"pre-tokenizer \(Digits\) does not end in ByteLevel"),
        ({"pre_tokenizer": BYTES}, r"pre-tokenizer \(ByteLevel\) splits text in none of the ways"),
        ({"pre_tokenizer": BYTES | {"add_prefix_space": True, "use_regex": True}}, "add_prefix_space"),
        ({"pre_tokenizer": sequence(DIGITS, BYTES | {"use_regex": True})}, "splits text"),
        ({"pre_tokenizer": sequence(split(), BYTES | {"use_regex": True})}, "splits text"),
        ({"pre_tokenizer": sequence(split(behavior="Removed"), BYTES)}, "splits text"),
        ({"pre_tokenizer": sequence(split(invert=True), BYTES)}, "splits text"),
        ({"pre_tokenizer": sequence(split(pattern={"Regex": r"\p{N}|\p{L}+"}), BYTES)}, "train one with"),
        ({"pre_tokenizer": sequence(split(pattern={"String": " "}), BYTES)}, "splits text"),
        ({"normalizer": {"type": "NFKC"}}, r"normalises text \(NFKC\)"),
        ({"model.ignore_merges": True}, "ignore_merges=True"),
        ({"model.dropout": 0.5}, "dropout=0.5"),
        ({"model.end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ({"model.byte_fallback": True}, "byte_fallback"),
        ({"model.merges": []}, "no merges"),
        ({"lstrip": True}, r"added token '<think>' has lstrip=true"),
    ],
)  # fmt: skip
def test_tokenizers_that_llama_cpp_would_apply_differently_are_refused(changes, named, words, tmp_path):
    load_tokenizer(str(words)).save(tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "tokenizer.json"
    spec = json.loads(file.read_text())
    for key, value in changes.items():
        if key == "lstrip":
            spec["added_tokens"][-1][key] = value
        elif key.startswith("model."):
            spec["model"][key.removeprefix("model.")] = value
        else:
            spec[key] = value
    file.write_text(json.dumps(spec))
    with pytest.raises(UserError, match=named) as error:
        export(small_model(tmp_path / "tokenizer"), tmp_path / "model.gguf")
    assert f"{file} has no equal in llama.cpp" in str(error.value)
    assert not (tmp_path / "model.gguf").exists()


def test_a_vocabulary_without_some_byte_is_refused(words, tmp_path):
    load_tokenizer(str(words)).save(tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "tokenizer.json"
    spec = json.loads(file.read_text())
    spec["model"]["vocab"]["never"] = spec["model"]["vocab"].pop("Z")
    file.write_text(json.dumps(spec))
    with pytest.raises(UserError, match="lacks 1 of the 256 bytes, such as 'Z'"):
        export(small_model(tmp_path / "tokenizer"), tmp_path / "model.gguf")


def test_nfc_is_warned_of(tmp_path, capsys):
    tokenizer = load_tokenizer(str(write_tokenizer(tmp_path / "tokenizer", "", ["the cat, the cat"], nfc=True)))
    config = dataclasses.replace(LLAMA, vocab_size=tokenizer.vocab_size)
    save_imported(Workdir(tmp_path / "w"), config, random_params(config), tokenizer, "test")
    to_gguf.main(["--model", str(tmp_path / "w"), "--out", str(tmp_path / "model.gguf")])
    assert "warning: llama.cpp does not normalise text to NFC" in capsys.readouterr().err


def test_a_modelfile_is_for_chatml_only(words, tmp_path):
    load_tokenizer(str(words)).save(tmp_path / "tokenizer")
    template = tmp_path / "tokenizer" / "chat_template.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}")
    model = small_model(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="is not ChatML"):
        export(model, tmp_path / "model.gguf", with_modelfile=True)
    assert not (tmp_path / "model.gguf").exists()
    export(model, tmp_path / "model.gguf")
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    export(small_model(tmp_path / "tokenizer"), tmp_path / "model.gguf", with_modelfile=True, force=True)
    assert '{{ end }}<|im_start|>assistant\n"""' in (tmp_path / "Modelfile").read_text()
    load_tokenizer(str(words)).save(tmp_path / "tokenizer")  # ours again: every answer has a think block
    export(small_model(tmp_path / "tokenizer"), tmp_path / "model.gguf", with_modelfile=True, force=True)
    block = "<think>\n\n</think>\n\n"
    assert (tmp_path / "Modelfile").read_text() == (
        'FROM ./model.gguf\n\nTEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}\n'
        f'{{{{ if eq .Role "assistant" }}}}{block}{{{{ end }}}}{{{{ .Content }}}}<|im_end|>\n'
        f'{{{{ end }}}}<|im_start|>assistant\n{block}"""\n\nPARAMETER stop "<|im_end|>"\n'
    )
