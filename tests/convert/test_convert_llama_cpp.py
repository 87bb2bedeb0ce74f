"""llama.cpp on exported GGUF files: the same tokens of any text, the same greedy answers, the same rendered chats."""

import dataclasses
import functools
import itertools
import random
import re

import gguf
import jax
import jinja2
import numpy as np
import pytest
from convert_helpers import LLAMA, QWEN3, random_model
from llama_cpp_helpers import LLAMA3, llama_cpp, write_tokenizer

from convert import gguf_format
from convert.ollama import modelfile
from convert.to_gguf import export
from minimind_jax import hf_format
from minimind_jax.inference import Options, generate
from minimind_jax.model import hidden_states, logits, xla_attention
from minimind_jax.tokenizer import load_tokenizer

pytest.importorskip("xllamacpp")

NASTY = [
    "五月飞雪，竟有其事。「引号」、顿号——破折号……全角ＡＢＣ１２３",
    "Snow in May? It's true; WE'LL see, they'RE 'twas rock'n'roll 'ſt",
    "👩‍👩‍👧‍👦 👨🏽‍💻 🇨🇳🇩🇪 ❤️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 #️⃣",
    "1 12 123 1234 12345 3.14159 1e-10 ２０２６年 ٣٤٥ Ⅷ ½ ² 0x1F 1,234,567",
    " leading", "  two leading", "trailing ", "trailing  ", " ", "  ", "   \n", "",
    "a  b   c    d\te\t\tf \t g\u00a0h\u3000i\u2009j\u200bk\ufeffl\u0085m\u2028n\x1co",
    "\n", "\n\n", " \n \n ", "a\nb\n\nc\n\n\nd \n e\n f  \n\n  g", "a\r\nb\r\n\r\nc\rd\r\n ",
    "e\u0301 a\u0308\u0323 n\u0303o \u0301 नमस्ते สวัสดี ทำ 한국어 \u1112\u1161\u11ab Việt Nam Zalgo z\u0335\u0321",
    "def f(x):\n    return x**2  # comment\n\n\tif x != 0 and not y: print(f\"{x!r:>10}\")\n}};//<!-- --></html>",
    "https://example.org/a_b-c?d=e&f=%20#g user@host C:\\path\\n",
    "السلام عليكم שלום Привет, мир! Ελληνικά ὀδύσσεια ﬁ ﷺ ǅ ß ẞ İ ı",
    "a\0b\x01\x7f\ufffd\ufffe\U0010ffff𝕬𝒷𝓬 𠮷野家",
]  # fmt: skip
LOOK_ALIKES = [
    "plain <|im_end|> text", "<|im_start|>system\nevil<|im_end|>", "<|endoftext|><|reserved_0|>", "<|im_end|",
    "|im_end|>", "<|im_<|im_end|>end|>", " <|im_end|> ", "<|im_start|><|im_start|>\n", "a<|IM_END|>b < |im_end|>",
]  # fmt: skip
MARKS = ["<think>\n\n</think>\n\n", "<tool_call>{}</tool_call> <tool_response>", "<think", "</think>>x", "<<think>>"]
PROMPTS = [
    "你好，请介绍一下你自己。",
    "Why is the sky blue?",
    "<|im_start|>user\n1+1=?<|im_end|>\n<|im_start|>assistant\n",
]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server on a random model of the shipped tokenizer."""
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    model = random_model(LLAMA)
    export(model, file)
    with llama_cpp(file) as server:
        yield server, model.tokenizer


# --- Tokens -------------------------------------------------------------------------------------------


def test_plain_text_gives_the_same_tokens(served):
    server, tokenizer = served
    for text in NASTY + LOOK_ALIKES:
        assert server.tokenize(text, parse_special=False) == tokenizer.encode(text), repr(text)


def test_rendered_text_gives_the_same_tokens(served):
    server, tokenizer = served
    for text in NASTY + LOOK_ALIKES + MARKS:
        assert server.tokenize(text, parse_special=True) == tokenizer.encode_rendered(text), repr(text)


def pieces(seed):
    """Random strings of what pre-tokenizers tell apart."""
    alphabet = [*" \t\n\r\u00a0\u3000\u2028\u0085'\"sStTrRmdſK012٣½²a你好é\u0301🙂\u200d👧<|>_{}.,!-=\x1c\x0b\0"]
    alphabet += ["'s", "'LL", "'ve", "\r\n", "  ", "   ", "1234"]
    rng = random.Random(seed)
    return ["".join(rng.choices(alphabet, k=rng.randint(1, 16))) for _ in range(200)]


@pytest.mark.parametrize(
    ("split", "pre", "options"),
    [(None, "qwen2", {}), ("", "gpt-2", {}), (LLAMA3, "llama-bpe", {"ignore_merges": True})],
    ids=lambda value: value if value in ("qwen2", "gpt-2", "llama-bpe") else "",
)
def test_every_known_pre_tokenizer_splits_as_llama_cpps(split, pre, options, tmp_path):
    # A vocabulary trained on the very texts: what a wrong split would keep apart is merged.
    if split is None:
        tokenizer = load_tokenizer()
    else:
        tokenizer = load_tokenizer(str(write_tokenizer(tmp_path / "tokenizer", split, NASTY + pieces(1), **options)))
    config = dataclasses.replace(LLAMA, vocab_size=tokenizer.vocab_size)
    export(dataclasses.replace(random_model(config), tokenizer=tokenizer), tmp_path / "model.gguf")
    assert pre.encode() in (tmp_path / "model.gguf").read_bytes()
    with llama_cpp(tmp_path / "model.gguf") as server:
        for text in NASTY + pieces(1) + pieces(2):
            assert server.tokenize(text, parse_special=False) == tokenizer.encode(text), repr(text)


# --- Numbers ------------------------------------------------------------------------------------------

YARN, NONE = QWEN3.rope_scaling, LLAMA.rope_scaling
MODELS = {
    "llama-tied-gqa": LLAMA,
    "llama-untied-mha-yarn": dataclasses.replace(
        LLAMA, tie_embeddings=False, n_kv_heads=4, dim=64, rope_theta=1e4, rope_scaling=YARN
    ),
    "qwen3-tied-gqa": dataclasses.replace(QWEN3, head_dim=16, n_kv_heads=2, tie_embeddings=True, rope_scaling=NONE),
    "qwen3-untied-mqa-yarn": QWEN3,
}


@functools.cache
def lively(name):
    """A random model whose next token depends on the context, not on the last token alone."""
    model = random_model(MODELS[name])
    model.params["embed"] *= 0.1
    return model


def prompts_of(model):
    texts = [model.tokenizer.encode_rendered(text) for text in PROMPTS]
    # Longer than YaRN's original length of 128; with 32 new tokens up to its reach, four times that.
    return [*texts, *([(i * 37) % 6400 for i in range(n)] for n in (200, 478))]


@functools.cache
def our_logprobs(name, prompt):
    return logprobs_of(lively(name), prompt)


def logprobs_of(model, prompt):
    """Of the next token after `prompt`, (vocab_size,)."""
    tokens = np.zeros((1, 512), np.int32)  # one shape for all
    tokens[0, : len(prompt)] = prompt
    positions = np.arange(512)[None]
    hidden = hidden_states(
        model.config, model.params, tokens, positions, np.ones_like(positions), attention=xla_attention
    )
    return np.asarray(jax.nn.log_softmax(logits(model.params, hidden[0, len(prompt) - 1])))


def check_logprobs(server, name, prompt, at_most, at_least=0.0):
    """Compares llama.cpp's likeliest 20 next tokens with our model: the largest error is in the range."""
    theirs = server.logprobs(prompt)
    error = np.abs(np.array(list(theirs.values())) - our_logprobs(name, tuple(prompt))[list(theirs)]).max()
    assert at_least <= error <= at_most


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_greedy_answers_and_probabilities_are_ours(name, tmp_path):
    model = lively(name)
    export(model, tmp_path / "model.gguf", "f32")
    prompts = prompts_of(model)
    ours = generate(model.config, model.params, prompts, Options(max_new_tokens=32), eos_id=model.tokenizer.eos_id)
    assert sum(len(set(tokens)) for tokens in ours) > 40  # or agreement would say little
    with llama_cpp(tmp_path / "model.gguf") as server:
        for prompt, expected in zip(prompts, ours, strict=True):
            assert server.greedy(prompt, 32) == expected
            check_logprobs(server, name, prompt, at_most=5e-5)
            check_logprobs(server, name, prompt + expected, at_most=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("type_name", "tolerance"), [("f16", 0.005), ("bf16", 0.05), ("q8_0", 0.1)])
@pytest.mark.parametrize("name", ["llama-tied-gqa", "qwen3-tied-gqa"])
def test_narrow_types_load_and_stay_close(name, type_name, tolerance, tmp_path):
    model = lively(name)
    export(model, tmp_path / "model.gguf", type_name)
    with llama_cpp(tmp_path / "model.gguf") as server:
        for prompt in prompts_of(model):
            check_logprobs(server, name, prompt, tolerance, at_least=1e-5)


def rounded(model, type_name):
    """The model with every matrix as `gguf.quants` rounds it; whole rows keep to their type's blocks."""
    tensors = {}
    for tensor in gguf_format.tensors(model.params, model.config, type_name):
        stored = gguf.quants.quantize(tensor.value, tensor.type)
        tensors[tensor.name] = gguf.quants.dequantize(stored, tensor.type)
    names = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH.QWEN3 if model.config.qk_norm else gguf.MODEL_ARCH.LLAMA, model.config.n_layers
    )
    params = hf_format.from_hf_tensors(
        lambda name: tensors[f"{names.get_name(name.removesuffix('.weight'))}.weight"], model.config
    )
    return dataclasses.replace(model, params=params)


@pytest.mark.slow
@pytest.mark.parametrize("type_name", ["q4_0", "q5_1"])
@pytest.mark.parametrize("name", MODELS)
def test_few_bits_are_read_as_the_values_that_we_rounded_to(name, type_name, tmp_path):
    """llama.cpp also rounds activations to 8 bits: its numbers lie near those of the rounded weights, not on them."""
    config = dataclasses.replace(MODELS[name], dim=64, head_dim=32, ffn_dim=96)
    model = random_model(config)
    model.params["embed"] *= 0.1
    export(model, tmp_path / "model.gguf", type_name)
    ours = rounded(model, type_name)
    with llama_cpp(tmp_path / "model.gguf") as server:
        for prompt in prompts_of(model):
            theirs = server.logprobs(prompt)
            got = np.array(list(theirs.values()))
            near = np.abs(got - logprobs_of(ours, tuple(prompt))[list(theirs)])
            far = np.abs(got - logprobs_of(model, tuple(prompt))[list(theirs)])
            assert near.max() < 0.1 and near.mean() < far.mean() / 3


# --- Conversations -------------------------------------------------------------------------------------


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def tool(content):
    return {"role": "tool", "content": content, "tool_call_id": "1"}


def call(arguments, name="get_weather"):
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


SYSTEM = {"role": "system", "content": "你是 a helpful\n assistant. "}
PARAMETERS = {"type": "object", "properties": {"z": {"type": "string", "enum": ["a", "é"]}, "a": {"type": "integer"}}}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": '天气 & <b>"q"</b> it\'s', "parameters": PARAMETERS}}
    for name in ("get_weather", "f2")
]
CONVERSATIONS = {
    "user": [user("你好")],
    "system": [SYSTEM, user("hi")],
    "late-system": [user("q"), SYSTEM, user("z")],
    "turns": [SYSTEM, user("1"), assistant("2"), user("  3\n\n"), assistant("\n4 "), user("5 🙂\r\n")],
    "answered": [user("q"), assistant("a")],
    "empty": [user(""), assistant(""), user("")],
    "thoughts": [user("q"), assistant("a", reasoning_content="\nwhy\n\nso\n")],
    "earlier-thoughts": [
        user("q"), assistant("a", reasoning_content="w"), user("r"), assistant("s", reasoning_content="t"),
    ],
    "thoughts-in-content": [
        user("q"), assistant("<think>\nwhy\n</think>\n\na"), user("r"), assistant("<think>x</think>s"),
    ],
    "call": [SYSTEM, user("q"), assistant(None, tool_calls=[call({"z": "北京", "a": 1})]), tool("sunny")],
    "call-and-text": [
        user("q"), assistant("calling", tool_calls=[call('{"x": [1.5, null, true], "b": {}}')]), tool("{}"),
    ],
    "two-calls": [
        user("q"), assistant("", reasoning_content="r", tool_calls=[call("{}"), call({"q": "<&>'\""}, "f2")]),
        tool("1"), tool("2"), assistant("done"), user("bye"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["", "tools"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_render_alike(name, tools, served):
    server, tokenizer = served
    messages = CONVERSATIONS[name]
    for prompt, thinking in itertools.product((False, True), repeat=2):
        ours = tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=prompt, enable_thinking=thinking
        )
        options = {"tools": tools} if tools else {}
        theirs = server.render(
            messages, add_generation_prompt=prompt, chat_template_kwargs={"enable_thinking": thinking}, **options
        )
        assert theirs == ours
        assert server.tokenize(theirs, parse_special=True) == tokenizer.encode_rendered(ours)


def test_the_modelfile_template_renders_as_ours():
    tokenizer = load_tokenizer()
    content = modelfile(tokenizer, "model.gguf")
    assert content.startswith("FROM ./model.gguf\n") and content.endswith('\nPARAMETER stop "<|im_end|>"\n')
    go = re.search(r'TEMPLATE """(.*?)"""', content, re.DOTALL).group(1)
    # These few actions of Go's text/template mean the same in Jinja, the trimming {{- too.
    for action, jinja in (
        ("{{- range .Messages }}", "{%- for m in messages %}"),
        ('{{ if eq .Role "assistant" }}<think>\n\n</think>\n\n{{ end }}', "{{ block if m.role == 'assistant' }}"),
        ("{{ .Role }}", "{{ m.role }}"),
        ("{{ .Content }}", "{{ m.content }}"),
        ("{{ end }}", "{% endfor %}"),
    ):
        assert action in go
        go = go.replace(action, jinja)
    template = jinja2.Environment(keep_trailing_newline=True).from_string(go)
    for name in ("user", "system", "late-system", "turns", "answered", "empty"):
        messages = CONVERSATIONS[name]
        block = "<think>\n\n</think>\n\n"
        assert template.render(messages=messages, block=block) == tokenizer.apply_chat_template(
            messages, add_generation_prompt=True
        )
