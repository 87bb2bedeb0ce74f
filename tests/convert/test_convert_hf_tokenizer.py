"""Tokenizer directories from elsewhere, exported: what is written, and what transformers 4.57 and 5.x make of it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from convert_helpers import LLAMA, edit_json, random_model
from tokenizer_variants import write_variant

from convert import to_hf, transformers_check
from convert.hf_tokenizer import meaning
from convert.transformers_check import unavailable
from minimind_jax.errors import UserError
from minimind_jax.tokenizer import Tokenizer, load_tokenizer
from minimind_jax.tokenizer.load import SHIPPED
from minimind_jax.workdir import load_model

OLD = "4.57.6"  # the last 4.x
EXTRA = "<|extra|>"
TOOLS_TEMPLATE = "{{- tools[0].name }}:{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
OWN_TEMPLATE = (SHIPPED / "chat_template.jinja").read_text("utf-8")


def saved_by_5(directory: Path) -> None:
    """As transformers 5.24 saves a tokenizer that was given a special token."""
    edit_json(
        directory / "tokenizer_config.json",
        tokenizer_class="TokenizersBackend", backend="tokenizers", is_local=True, local_files_only=False,
        extra_special_tokens=[EXTRA],
    )  # fmt: skip


def tokens_as_objects(directory: Path) -> None:
    token = {"__type": "AddedToken", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    edit_json(
        directory / "tokenizer_config.json",
        tokenizer_class="Qwen2Tokenizer",
        eos_token=token | {"content": "<|im_end|>"},
        additional_special_tokens=[token | {"content": EXTRA}, "<|im_start|>"],
        extra_special_tokens={"image_token": EXTRA, "video_token": "<|video|>"},
    )


def code_of_its_own(directory: Path) -> None:
    edit_json(
        directory / "tokenizer_config.json",
        tokenizer_class="OddTokenizer",
        auto_map={"AutoTokenizer": ["tokenization_odd.OddTokenizer", None]},
    )
    (directory / "tokenization_odd.py").write_text("raise SystemExit('was run')")


def named_templates(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink()
    templates = {"default": OWN_TEMPLATE.replace("\n", "\r\n"), "tool_use": TOOLS_TEMPLATE}
    named = [{"name": name, "template": text} for name, text in templates.items()]
    edit_json(directory / "tokenizer_config.json", chat_template=named)


def template_files(directory: Path) -> None:
    edit_json(directory / "tokenizer_config.json", chat_template="a text that a file replaces")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text(TOOLS_TEMPLATE)


def added_tokens_again(directory: Path) -> None:
    """What older versions wrote beside tokenizer.json, and would obey more than it."""
    token = {"content": EXTRA, "lstrip": True, "rstrip": True, "normalized": True, "single_word": True, "special": True}
    other = token | {"content": "<|other|>"}
    edit_json(directory / "tokenizer_config.json", added_tokens_decoder={"6400": token, "6401": other})
    (directory / "added_tokens.json").write_text(json.dumps({"<|other|>": 6401}))
    special = {"eos_token": {"content": "<|endoftext|>"}, "additional_special_tokens": ["<|other|>"]}
    (directory / "special_tokens_map.json").write_text(json.dumps(special))


def sentencepiece_beside(directory: Path) -> None:
    (directory / "tokenizer.model").write_bytes(b"\n\x0e no model at all")
    edit_json(directory / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", legacy=True, add_bos_token=True)


def tokens_without_an_id(directory: Path) -> None:
    edit_json(
        directory / "tokenizer_config.json",
        unk_token="<unk>", mask_token="[MASK]", additional_special_tokens=["<|never|>", EXTRA],
    )  # fmt: skip


def a_space_in_front(directory: Path) -> None:
    edit_json(directory / "tokenizer.json", pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True})  # fmt: skip # noqa: E501


def its_own_additions(directory: Path) -> None:
    """Adds a token to each text, cuts and pads."""
    edit_json(
        directory / "tokenizer.json",
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
        },
        truncation={"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0},
        padding={"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"},  # noqa: E501
    )  # fmt: skip


FOREIGN: list[Callable[[Path], None]] = [
    saved_by_5, tokens_as_objects, code_of_its_own, named_templates, template_files, added_tokens_again,
    sentencepiece_beside, tokens_without_an_id, a_space_in_front, its_own_additions,
]  # fmt: skip
each_foreign = pytest.mark.parametrize("change", FOREIGN, ids=lambda change: change.__name__)


def foreign_tokenizer(tmp_path: Path, change: Callable[[Path], None]) -> Tokenizer:
    directory = write_variant(tmp_path / "tokenizer", added=(EXTRA,))
    change(directory)
    return load_tokenizer(str(directory))


def export(tokenizer: Tokenizer, out: Path) -> str:
    return to_hf.export(dataclasses.replace(random_model(LLAMA), tokenizer=tokenizer), out)


@each_foreign
def test_nothing_of_one_version_is_left_and_the_meaning_stays(change, tmp_path):
    tokenizer = foreign_tokenizer(tmp_path, change)
    export(tokenizer, tmp_path / "out")
    written = load_tokenizer(str(tmp_path / "out"))
    assert meaning(written) == meaning(tokenizer)
    config = written.config
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and config["eos_token"] == "<|im_end|>"
    foreign = {"extra_special_tokens", "auto_map", "added_tokens_decoder", "backend", "legacy", "chat_template"}
    assert not foreign & config.keys()
    assert all(text in written.vocabulary for text in written.special_tokens.values())
    names = {p.name for p in (tmp_path / "out").rglob("*") if "token" in p.name or p.suffix in (".jinja", ".py")}
    own = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert names == own | ({"tool_use.jinja"} if "template" in change.__name__ else set())
    for text in ("Snow in May? 五月飞雪", f" a{EXTRA} b <|im_end|>"):
        assert written.encode(text) == tokenizer.encode(text)
        assert written.encode_rendered(text) == tokenizer.encode_rendered(text)
    tools = [{"name": "add", "parameters": {}}]
    messages = [{"role": "user", "content": "Hi"}]
    assert written.apply_chat_template(messages, tools) == tokenizer.apply_chat_template(messages, tools)
    special = config.get("additional_special_tokens", [])
    assert special == ([EXTRA] if change in (saved_by_5, tokens_without_an_id) else special)
    assert set(special) <= {EXTRA, "<|im_start|>"}


def test_the_shipped_tokenizer_means_the_same(tmp_path):
    export(load_tokenizer(), tmp_path / "out")
    written = load_tokenizer(str(tmp_path / "out"))
    assert written.fingerprint == load_tokenizer().fingerprint
    assert load_tokenizer().config.items() <= written.config.items()


def test_an_export_of_an_export_is_the_same(tmp_path):
    tokenizer = foreign_tokenizer(tmp_path, named_templates)
    export(tokenizer, tmp_path / "once")
    to_hf.export(load_model(tmp_path / "once"), tmp_path / "twice")
    for file in (tmp_path / "once").rglob("*"):
        if "token" in file.name or file.suffix == ".jinja":
            assert file.read_bytes() == (tmp_path / "twice" / file.relative_to(tmp_path / "once")).read_bytes()


def test_a_template_with_a_path_for_a_name_is_refused_and_the_advice_helps(tmp_path):
    tokenizer = foreign_tokenizer(tmp_path, named_templates)
    config = tokenizer.path / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"tool_use"', '"../../tool_use"'))
    with pytest.raises(UserError, match=r"names a chat template '\.\./\.\./tool_use': take a name of letters"):
        export(load_tokenizer(str(tokenizer.path)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    config.write_text(config.read_text().replace('"../../tool_use"', '"tool_use"'))
    export(load_tokenizer(str(tokenizer.path)), tmp_path / "out")


def test_a_tokenizer_that_reads_back_otherwise_is_not_kept(tmp_path, monkeypatch):
    def lose_the_template(directory: Path, tokenizer: Tokenizer) -> None:
        shutil.copytree(tokenizer.path, directory, dirs_exist_ok=True)
        (directory / "chat_template.jinja").write_text("other")

    monkeypatch.setattr(to_hf, "write_tokenizer", lose_the_template)
    with pytest.raises(UserError, match="exported tokenizer reads back differently"):
        export(load_tokenizer(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_copy_of_the_directory_keeps_named_templates(tmp_path):
    tokenizer = foreign_tokenizer(tmp_path, template_files)
    tokenizer.save(tmp_path / "copy")
    copy = load_tokenizer(str(tmp_path / "copy"))
    assert copy.fingerprint == tokenizer.fingerprint and copy.template_source["tool_use"] == TOOLS_TEMPLATE


# --- Both versions ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def old_transformers(tmp_path_factory) -> Path:
    """transformers 4.57 in a directory of its own."""
    target = tmp_path_factory.mktemp("transformers-4")
    install = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(target)]
    done = subprocess.run([*install, f"transformers=={OLD}"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"transformers {OLD} cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return target


@pytest.fixture(params=["installed", OLD])
def version(request, monkeypatch) -> str:
    """The version that exports ask; subprocesses take it too."""
    monkeypatch.setattr(transformers_check, "unavailable", unavailable)
    if request.param == "installed":
        return transformers.__version__
    monkeypatch.setenv("PYTHONPATH", str(request.getfixturevalue("old_transformers")))
    return OLD


TEXTS = ("Snow in May? 五月飞雪\n\t12345", "<|im_start|>Hi 你好<|im_end|>", f" a{EXTRA} b<think>")
MESSAGES, TOOLS = [{"role": "user", "content": "Hi"}], [{"name": "add", "parameters": {}}]


def look(directories: list[Path]) -> list[dict[str, Any]]:
    """What transformers makes of tokenizer directories."""
    code = """
import json, sys
from transformers import AutoTokenizer
directories, texts, messages, tools = json.loads(sys.argv[1])
def look(directory):
    t = AutoTokenizer.from_pretrained(directory)
    ids = [t.encode(text, add_special_tokens=False) for text in texts]
    return {
        "size": len(t), "special": t.all_special_tokens, "ends": [t.pad_token_id, t.bos_token_id, t.eos_token_id],
        "ids": ids, "kept": [t.decode(i) for i in ids], "left": [t.decode(i, skip_special_tokens=True) for i in ids],
        "inputs": sorted(t("Hi").keys()), "tools": t.apply_chat_template(messages, tools=tools, tokenize=False),
    }
print(json.dumps([look(d) for d in directories]))"""
    argument = json.dumps([[str(d) for d in directories], TEXTS, MESSAGES, TOOLS])
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, argument],
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_transformers_reads_the_same_tokenizer(version, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers_check, "unavailable", lambda: "asked once for all below")
    names = [change.__name__ for change in FOREIGN]
    tokenizers = [foreign_tokenizer(tmp_path / change.__name__, change) for change in FOREIGN]
    for name, tokenizer in zip(names, tokenizers, strict=True):
        export(tokenizer, tmp_path / name / "out")
    found = look([tmp_path / name / "out" for name in names])
    for name, tokenizer, theirs in zip(names, tokenizers, found, strict=True):
        ids = [tokenizer.encode_rendered(text) for text in TEXTS]
        expected = {
            "size": 6401,
            "ends": [0, 1, 2],
            "ids": ids,
            "kept": [tokenizer.decode(i, skip_special_tokens=False) for i in ids],
            "left": [tokenizer.decode(i) for i in ids],
            "inputs": ["attention_mask", "input_ids"],
            "tools": tokenizer.apply_chat_template(MESSAGES, TOOLS),
        }
        special = theirs.pop("special")
        assert theirs == expected, name
        assert {"<|im_start|>", "<|im_end|>"} <= set(special) <= {"<|endoftext|>", "<|im_start|>", "<|im_end|>", EXTRA}
        if name in ("saved_by_5", "tokens_as_objects", "tokens_without_an_id"):
            assert EXTRA in special


@pytest.mark.slow
@pytest.mark.parametrize("change", [saved_by_5, template_files], ids=lambda change: change.__name__)
def test_the_check_of_every_export_passes(change, version, tmp_path):
    tokenizer = foreign_tokenizer(tmp_path, change)
    assert f"transformers {version} computes the same logits" in export(tokenizer, tmp_path / "out")


@pytest.mark.slow
def test_a_directory_that_the_installed_transformers_saved(version, tmp_path):
    theirs = transformers.AutoTokenizer.from_pretrained(SHIPPED)
    name = "extra_special_tokens" if int(transformers.__version__.split(".")[0]) >= 5 else "additional_special_tokens"
    theirs.add_special_tokens({name: [EXTRA]})
    theirs.add_tokens(["zzzqqq"])
    theirs.save_pretrained(tmp_path / "tokenizer")
    export(load_tokenizer(str(tmp_path / "tokenizer")), tmp_path / "out")
    (found,) = look([tmp_path / "out"])
    assert found["size"] == len(theirs) == 6402 and EXTRA in found["special"]
