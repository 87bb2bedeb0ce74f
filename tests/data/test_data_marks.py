"""What becomes of marks between samples that pretraining texts spell out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_helpers import ByteTokenizer, save_tokenizer, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from minimind_jax.config import DataConfig
from minimind_jax.data import open_pretrain
from minimind_jax.data.build import open_store
from minimind_jax.data.encoders import TEXT_KINDS
from minimind_jax.data.marks import Marks
from minimind_jax.data.store import TokenStore
from minimind_jax.tokenizer import Tokenizer, load_tokenizer

TOKENIZER = load_tokenizer()
BOS, EOS = TOKENIZER.bos_id, TOKENIZER.eos_id


def documents(tmp_path: Path, texts: list[str], marks: str, tokenizer: Tokenizer = TOKENIZER) -> list[list[int]]:
    store = make_store(tmp_path, texts, marks, tokenizer)
    return [store.tokens[a:b].tolist() for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True)]


def make_store(tmp_path: Path, texts: list[str], marks: str, tokenizer: Tokenizer = TOKENIZER) -> TokenStore:
    return open_store(
        write_jsonl(tmp_path / "a.jsonl", texts), tokenizer, str(tmp_path / "cache"), 1, TEXT_KINDS[marks]
    )


# text -> the documents it is split into; the same with its marks as control tokens, B and E
CASES = {
    "<|im_start|>一<|im_end|> <|im_start|>二<|im_end|>": (["一", "二"], ["B", "一", "E", " ", "B", "二", "E"]),
    "no marks,  as it is \n": (["no marks,  as it is \n"], ["B", "no marks,  as it is \n", "E"]),
    "<|im_start|> one <|im_end|>": (["one"], ["B", " one ", "E"]),
    "one<|im_end|>two": (["one", "two"], ["B", "one", "E", "two", "E"]),
    "one<|im_start|>two": (["one", "two"], ["B", "one", "B", "two", "E"]),
    "<|im_end|>one<|im_start|>": (["one"], ["B", "E", "one", "B", "E"]),
    "<|im_start|><|im_start|>one<|im_end|><|im_end|>": (["one"], ["B", "B", "one", "E", "E"]),
    "story one<|endoftext|>\nstory two<|endoftext|>": (
        ["story one", "story two"],
        ["B", "story one", "E", "\nstory two", "E"],
    ),
    "not marks: <s> </s> <|im_start > <think> im_end": (
        ["not marks: <s> </s> <|im_start > <think> im_end"],
        ["B", "not marks: <s> </s> <|im_start > <think> im_end", "E"],
    ),
}


@pytest.mark.parametrize("text", CASES)
def test_marks_split_or_are_encoded_or_are_text(text: str, tmp_path: Path) -> None:
    pieces, parts = CASES[text]
    assert documents(tmp_path, [text], "split") == [[BOS, *TOKENIZER.encode(piece), EOS] for piece in pieces]
    ids = {"B": [BOS], "E": [EOS]}
    encoded = [i for part in parts for i in (ids.get(part) or TOKENIZER.encode(part))]
    assert documents(tmp_path, [text], "encode") == [encoded]
    spelt = documents(tmp_path, [text], "text")
    assert spelt == [[BOS, *TOKENIZER.encode(text), EOS]]
    assert not set(spelt[0][1:-1]) & set(TOKENIZER.control_tokens.values())


def test_each_option_has_a_store_and_counts_what_it_did(tmp_path: Path) -> None:
    texts = [next(iter(CASES)), "plain", "one<|im_end|>two"]
    stores = {marks: make_store(tmp_path, texts, marks) for marks in TEXT_KINDS}
    assert len({store.path for store in stores.values()}) == 3
    both, end = "`<|im_start|>`, `<|im_end|>`", "`<|im_end|>`"
    for marks, phrase in {
        "split": "text split into documents at {}",
        "encode": "text with {} as control tokens",
        "text": "text that spells out {}",
    }.items():
        assert stores[marks].meta.notes == {phrase.format(both): 1, phrase.format(end): 1}
        assert stores[marks].meta.n_records == 3
    assert [store.meta.n_docs for store in stores.values()] == [5, 3, 3]
    # What is learnt, without the marks where they are none of the text.
    assert [int(stores[marks].n_bytes.sum()) for marks in ("split", "encode", "text")] == [
        17,
        18,
        len("".join(texts).encode()),
    ]
    assert len(stores["split"].flags) == len(stores["encode"].flags) == 0


def test_nothing_but_marks_is_an_unusable_line(tmp_path: Path) -> None:
    for marks in ("split", "encode"):
        meta = make_store(tmp_path, ["<|im_start|> <|im_end|>", "text"], marks).meta
        assert [(bad.line, bad.reason) for bad in meta.bad] == [(1, "`text` holds nothing but marks")]
        assert meta.n_docs == 1
    assert make_store(tmp_path, ["<|im_start|> <|im_end|>", "text"], "text").meta.n_docs == 2


def test_turns_of_a_chat_are_pointed_out_and_the_advice_keeps_them(tmp_path: Path) -> None:
    chat = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"
    notes = make_store(tmp_path, [chat, "<|im_start|>username<|im_end|>"], "split").meta.notes
    (note,) = [phrase for phrase in notes if "conversation" in phrase]
    assert notes[note] == 1 and "data.marks=encode" in note
    kept = documents(tmp_path, [chat], "encode")
    assert kept == [[*TOKENIZER.encode_rendered(chat), EOS]]


def test_the_parts_of_a_text_stay_apart_in_a_split_by_their_own_content(tmp_path: Path) -> None:
    """Copies of a part are on one side, wherever they stand."""
    texts = [f"<|im_start|>question {i}<|im_end|><|im_start|>answer<|im_end|>" for i in range(30)]
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    data = DataConfig(path=str(path), cache_dir=str(tmp_path / "cache"), max_seq_len=16, val_fraction=0.2)
    train, val = open_pretrain(data, TOKENIZER, 0)
    assert val is not None
    assert train.n_docs + val.n_docs == 60
    assert train.n_docs < 30 or val.n_docs < 30  # all thirty answers on one of the sides


def test_marks_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    text = "<bos>a<eos><|im_start|>b<|im_end|>"
    assert Marks(ByteTokenizer()).split(text) == ["a", "<|im_start|>b<|im_end|>"]

    directory = save_tokenizer(tmp_path / "tokenizer")
    spec = json.loads((directory / "tokenizer.json").read_text())
    next_id = len(spec["model"]["vocab"])
    for i, content in enumerate(("<s>", "</s>")):
        spec["added_tokens"].append(
            {"id": next_id + i, "content": content, "special": True, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False}
        )  # fmt: skip
    (directory / "tokenizer.json").write_text(json.dumps(spec))
    config = json.loads((directory / "tokenizer_config.json").read_text())
    older = load_tokenizer(str(directory))
    assert Marks(older).split("<s>a</s><|im_start|>b") == ["a", "b"]
    assert Marks(older).parts("<s>a</s>") == [older.bos_id, "a", older.eos_id]
    assert Marks(TOKENIZER).split("<s>a</s>") == ["<s>a</s>"]

    del config["bos_token"]  # as with Qwen
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    qwen = load_tokenizer(str(directory))
    assert qwen.bos_id == qwen.eos_id
    start = qwen.control_tokens["<|im_start|>"]
    assert Marks(qwen).split("<|im_start|>a<|im_end|><|im_start|>b") == ["a", "b"]
    assert Marks(qwen).parts("<|im_start|>a<|im_end|>") == [start, "a", qwen.eos_id]
    assert Marks(qwen).has_turns("<|im_start|>user\na")


@given(
    st.lists(
        st.sampled_from(["<|im_start|>", "<|im_end|>", "a", " ", "\n", "<", "|im_end|>", "<|endoftext|>"]), max_size=9
    )
)
def test_nothing_but_marks_and_space_around_them_is_lost(parts: list[str]) -> None:
    marks, text = Marks(TOKENIZER), "".join(parts)
    names = {BOS: "<|im_start|>", EOS: "<|im_end|>"}
    together = "".join(part if isinstance(part, str) else names[part] for part in marks.parts(text))
    assert together == text.replace("<|endoftext|>", "<|im_end|>")
    pieces = marks.split(text)
    assert not any(marks.found(piece) for piece in pieces)
    if marks.found(text):
        assert "".join("".join(pieces).split()) == "".join(
            "".join(part for part in marks.parts(text) if isinstance(part, str)).split()
        )
    else:
        assert pieces == [text]
