"""Text to ids and back, against `transformers` and by property; other directories; bad directories."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from minimind_jax.errors import UserError
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.tokenizer.train import CONTROL_TOKENS, MARKS

SHIPPED = load_tokenizer()
HF = AutoTokenizer.from_pretrained(str(SHIPPED.path))

NASTY = [
    "",
    "e\u0301 \u0301 Å ﬁ ½",  # combining marks that a normalizer would join
    "\x00\x01 \u200b\u2060\ufeff",
    "a\r\nb\rc\n\n\n  \t d \u3000",
    "12345 1,000.50 ２０２４年",
    "don't DON'T I'll",
    "👩‍👩‍👧‍👦🏳️‍🌈🇨🇳",
    "𠮷野家 繁體 ひらがな 한국어 العربية עברית हिन्दी",
    "def f(x):\n    return x ** 2  # …\n",
    " " * 300,
    "<|im_end|>",
    "<think><tool_call></tool_call></think>",
]
text_strategy = st.lists(
    st.one_of(st.text(max_size=20), st.sampled_from([*CONTROL_TOKENS, *NASTY, "<", "|", ">", " "])), max_size=8
).map("".join)


def test_layout_of_the_shipped_tokenizer() -> None:
    assert SHIPPED.vocab_size == 6400 == len(HF)
    assert (SHIPPED.pad_id, SHIPPED.bos_id, SHIPPED.eos_id) == (0, 1, 2)
    assert (HF.pad_token_id, HF.bos_token_id, HF.eos_token_id) == (0, 1, 2)
    assert [HF.convert_tokens_to_ids(t) for t in CONTROL_TOKENS] == list(range(16))
    assert CONTROL_TOKENS[:9] == (
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        *("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    )


@pytest.mark.parametrize("text", NASTY)
def test_nasty_text_comes_back_and_tokenizes_as_in_transformers(text: str) -> None:
    assert SHIPPED.decode(SHIPPED.encode(text)) == text
    assert SHIPPED.encode_rendered(text) == HF.encode(text)


@settings(max_examples=300, deadline=None)
@given(text_strategy)
def test_any_text_is_lossless_and_never_a_control_token(text: str) -> None:
    ids = SHIPPED.encode(text)
    assert SHIPPED.decode(ids) == text
    assert all(i >= len(CONTROL_TOKENS) for i in ids)
    assert SHIPPED.decode(SHIPPED.encode_rendered(text), skip_special_tokens=False) == text


@settings(max_examples=200, deadline=None)
@given(text_strategy)
def test_rendered_text_tokenizes_as_in_transformers(text: str) -> None:
    ids = HF.encode(text)
    assert SHIPPED.encode_rendered(text) == ids
    for skip in (True, False):
        assert SHIPPED.decode(ids, skip_special_tokens=skip) == HF.decode(ids, skip_special_tokens=skip)


@settings(max_examples=50, deadline=None)
@given(st.lists(text_strategy, max_size=5))
def test_a_batch_equals_one_by_one(texts: list[str]) -> None:
    assert SHIPPED.encode_batch(texts) == [SHIPPED.encode(text) for text in texts]


def test_decode_shows_thoughts_and_calls_but_no_special_tokens() -> None:
    ids = SHIPPED.encode_rendered("<|im_start|><think>a</think><tool_call>b</tool_call><|im_end|><|reserved_0|>")
    assert SHIPPED.decode(ids) == "<think>a</think><tool_call>b</tool_call>"
    assert set(MARKS) == {t for t in CONTROL_TOKENS if SHIPPED.decode(SHIPPED.encode_rendered(t))}


def test_digits_stand_alone() -> None:
    assert [SHIPPED.decode([i]) for i in SHIPPED.encode("20240101")] == list("20240101")
    assert not [t for t in HF.get_vocab() if sum(c in "0123456789" for c in t) > 1]


def test_a_lone_surrogate_is_a_clear_error() -> None:
    with pytest.raises(UserError, match=r"lone surrogate U\+D83D at character 2"):
        SHIPPED.encode_batch(["fine", "ab\ud83d"])


def test_no_torch_and_no_transformers_at_run_time() -> None:
    code = (
        "import sys; import minimind_jax.tokenizer.__main__ as m; from minimind_jax.tokenizer import load_tokenizer\n"
        "t = load_tokenizer(); t.encode(t.apply_chat_template([{'role': 'user', 'content': 'hi'}]))\n"
        "print([n for n in ('torch', 'transformers', 'jax') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pickles_to_another_process_also_after_rendering() -> None:
    tokenizer = load_tokenizer()
    conversation = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(conversation)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(text) == tokenizer.encode(text) != copy.encode_rendered(text)
    assert copy.apply_chat_template(conversation) == text


def test_save_gives_the_same_tokenizer(tmp_path: Path) -> None:
    SHIPPED.save(tmp_path / "a" / "b")
    copy = load_tokenizer(str(tmp_path / "a" / "b"))
    assert copy.fingerprint == SHIPPED.fingerprint
    assert AutoTokenizer.from_pretrained(str(copy.path)).chat_template == HF.chat_template
    copy.save(copy.path)  # onto itself: nothing lost
    assert load_tokenizer(str(copy.path)).fingerprint == SHIPPED.fingerprint


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
def test_transformers_keeps_it_as_it_is_beside_a_model(tmp_path: Path, model_type: str) -> None:
    # transformers 5 rebuilds some tokenizers by the model's type, with a normalizer that loses text.
    SHIPPED.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    hf = AutoTokenizer.from_pretrained(str(tmp_path))
    for text in NASTY:
        assert hf.encode(text) == SHIPPED.encode_rendered(text)


def test_the_fingerprint_sees_template_and_ids(tmp_path: Path) -> None:
    SHIPPED.save(tmp_path)
    template = tmp_path / "chat_template.jinja"
    template.write_text(template.read_text() + "x")
    changed_template = load_tokenizer(str(tmp_path)).fingerprint
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<|endoftext|>"}))
    changed_bos = load_tokenizer(str(tmp_path)).fingerprint
    assert len({SHIPPED.fingerprint, changed_template, changed_bos}) == 3


# --- Other directories ------------------------------------------------------------------------


def write_foreign(path: Path, config: dict | None, special_map: dict | None = None) -> Path:
    """A Llama-3-like directory: its own bos and padding in tokenizer.json, ids of added tokens after the bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "[END]"])
    backend.add_tokens(["    ", "<tool>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    backend.enable_padding(length=64)
    backend.save(str(path / "tokenizer.json"))
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    if special_map is not None:
        (path / "special_tokens_map.json").write_text(json.dumps(special_map))
    return path


def test_another_directory_works(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    config = {"bos_token": {"content": "<s>"}, "eos_token": "[END]", "chat_template": template}
    tokenizer = load_tokenizer(str(write_foreign(tmp_path, config)))
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (260, 256, 257, 257)
    assert tokenizer.decode(tokenizer.encode("<s>[END]<tool>")) == "<s>[END]<tool>"
    assert not {256, 257, 259} & set(tokenizer.encode("<s>[END]<tool>"))
    assert tokenizer.encode("    ") == [258]  # an added token that controls nothing stays one
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "a[END]<s>"}])
    assert rendered == "<s>user: a[ END]< s>[END]"
    ids = tokenizer.encode_rendered(rendered)
    assert ids[0] == 256 and ids[-1] == 257 and not {256, 257} & set(ids[1:-1])


def test_special_tokens_of_an_older_directory(tmp_path: Path) -> None:
    special_map = {"bos_token": {"content": "<s>"}, "eos_token": "[END]"}
    tokenizer = load_tokenizer(str(write_foreign(tmp_path, None, special_map)))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (256, 257)
    with pytest.raises(UserError, match=r"has no chat template: add chat_template\.jinja"):
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}])


def test_bos_falls_back_to_eos_as_in_qwen3(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(write_foreign(tmp_path, {"bos_token": None, "eos_token": "[END]"})))
    assert tokenizer.bos_id == tokenizer.eos_id == 257


def test_named_templates(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools | tojson }}"}]
    config = {"eos_token": "[END]", "chat_template": templates}
    tokenizer = load_tokenizer(str(write_foreign(tmp_path, config)))
    hf = PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    for tools in (None, [{"name": "f"}]):
        conversation = [{"role": "user", "content": "a"}]
        ours = tokenizer.apply_chat_template(conversation, tools=tools)
        assert ours == hf.apply_chat_template(conversation, tools=tools, tokenize=False)


def test_a_generation_block_renders_its_body(tmp_path: Path) -> None:
    template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    tokenizer = load_tokenizer(str(write_foreign(tmp_path, {"eos_token": "[END]", "chat_template": template})))
    assert tokenizer.apply_chat_template([{"role": "assistant", "content": "a"}]) == "a"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "no tokenizer directory at"),
        ({}, "has no tokenizer.json"),
        ({"tokenizer.json": "{"}, r"tokenizer\.json is no JSON"),
        ({"tokenizer.json": "[]"}, r"tokenizer\.json must hold a JSON object, not list"),
        ({"tokenizer.json": "{}"}, r"tokenizer\.json is no usable tokenizer"),
        ({"tokenizer.json": None}, r"has no tokenizer_config\.json"),
        ({"tokenizer.json": None, "tokenizer_config.json": "{}"}, "names no eos_token"),
        (
            {"tokenizer.json": None, "tokenizer_config.json": '{"eos_token": "<end>"}'},
            r"tokenizer_config\.json: eos_token '<end>' is not in tokenizer\.json",
        ),
    ],
)
def test_a_bad_directory_is_a_clear_error(tmp_path: Path, files: dict | None, message: str) -> None:
    directory = tmp_path / "tokenizer"
    for name, content in (files or {}).items():
        directory.mkdir(exist_ok=True)
        if content is None:
            content = (SHIPPED.path / name).read_text(encoding="utf-8")
        (directory / name).write_text(content, encoding="utf-8")
    if files == {}:
        directory.mkdir()
    with pytest.raises(UserError, match=message):
        load_tokenizer(str(directory))


def test_a_tokenizer_that_cannot_tell_content_from_control_is_refused(tmp_path: Path) -> None:
    backend = Backend(models.WordLevel({"<s>": 0, "a": 1, "?": 2}, unk_token="?"))
    backend.add_special_tokens(["<s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<s>"}')
    with pytest.raises(UserError, match="makes the control token '<s>' out of plain text"):
        load_tokenizer(str(tmp_path))


def test_a_broken_template_is_a_clear_error(tmp_path: Path) -> None:
    SHIPPED.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}")
    with pytest.raises(UserError, match="is no Jinja template"):
        load_tokenizer(str(tmp_path)).apply_chat_template([{"role": "user", "content": "a"}])


@settings(deadline=None)
@given(text_strategy)
def test_the_bytes_of_tokens_are_the_bytes_of_the_text(text: str) -> None:
    parts = [SHIPPED.token_bytes(token) for token in SHIPPED.encode_rendered(text)]
    assert b"".join(part for part in parts if part is not None) == text.encode()
    assert None not in parts


def test_tokens_that_have_no_bytes(tmp_path: Path) -> None:
    assert SHIPPED.token_bytes(SHIPPED.eos_id) == b"<|im_end|>"
    assert SHIPPED.token_bytes(-1) is None
    assert SHIPPED.token_bytes(6400) is None
    spec = json.loads((SHIPPED.path / "tokenizer.json").read_text())
    SHIPPED.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec | {"decoder": {"type": "Fuse"}}))
    assert load_tokenizer(str(tmp_path)).token_bytes(300) is None  # nobody says that its symbols are bytes
