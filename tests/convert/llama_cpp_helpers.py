"""llama.cpp's own server on a GGUF file, in this process (package `xllamacpp`); small tokenizers and models for it."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from convert_helpers import LLAMA, random_model
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from minimind_jax.config import ModelConfig
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.workdir import LoadedModel


class LlamaCpp:
    """A client of one server."""

    def __init__(self, address: str) -> None:
        self._host = address.removeprefix("http://")

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self._host, timeout=60)
        with contextlib.closing(connection):  # the server drops one that has been idle
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
        assert "error" not in answer, answer
        return answer

    def tokenize(self, text: str, parse_special: bool) -> list[int]:
        return self.post("/tokenize", content=text, parse_special=parse_special)["tokens"]

    def greedy(self, prompt: list[int], n: int) -> list[int]:
        """The next `n` tokens."""
        return self.post("/completion", prompt=prompt, n_predict=n, temperature=0, return_tokens=True)["tokens"]

    def logprobs(self, prompt: list[int]) -> dict[int, float]:
        """Log-probabilities of the 20 likeliest next tokens."""
        # The bias forces a token that is a whole character: the server withholds those of an unfinished one.
        # It takes no part in the probabilities.
        forced = {"n_predict": 1, "temperature": 0, "logit_bias": [[20, 1000]]}
        answer = self.post("/completion", prompt=prompt, n_probs=20, **forced)
        return {top["id"]: top["logprob"] for top in answer["completion_probabilities"][0]["top_logprobs"]}

    def render(self, messages: list[dict], **options: Any) -> str:
        return self.post("/apply-template", messages=messages, **options)["prompt"]


@contextlib.contextmanager
def llama_cpp(file: Path) -> Iterator[LlamaCpp]:
    """Serves `file` on a free local port; float32 cache, no flash attention: either rounds logits by 1e-3."""
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.port, params.n_ctx, params.n_parallel = 0, 512, 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.fit_params = params.warmup = params.ui = False
    params.prefill_assistant = False  # or a conversation that ends in an answer is one to go on with
    params.verbosity = 0
    server = xllamacpp.Server(params)
    try:
        yield LlamaCpp(server.listening_address)
    finally:
        del server


# Split expressions that llama.cpp has, apart from the shipped tokenizer's: gpt-2's stands in ByteLevel itself.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def write_tokenizer(directory: Path, split: str, texts: list[str], nfc: bool = False, **model: Any) -> Path:
    """Trains a byte-level BPE of 700 entries on `texts`; `split` "" = gpt-2's."""
    steps = [pre_tokenizers.Split(Regex(split), "isolated")] if split else []
    tokenizer = Tokenizer(models.BPE(**model))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, byte_level]) if steps else byte_level
    tokenizer.decoder = decoders.ByteLevel()
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    special = [AddedToken(token, normalized=False) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        min_frequency=1,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (directory / name).write_bytes((load_tokenizer().path / name).read_bytes())
    return directory


def small_model(tokenizer_path: Path, config: ModelConfig = LLAMA) -> LoadedModel:
    """A random model with as many rows as that tokenizer has entries."""
    tokenizer = load_tokenizer(str(tokenizer_path))
    model = random_model(dataclasses.replace(config, vocab_size=tokenizer.vocab_size))
    return dataclasses.replace(model, tokenizer=tokenizer)
