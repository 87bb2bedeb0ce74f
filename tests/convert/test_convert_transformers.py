"""transformers on exported directories: the check that every export passes, and greedy generation."""

import dataclasses
import sys

import jax
import numpy as np
import pytest
import torch
import transformers
from convert_helpers import LLAMA, QWEN3, edit_json, equal_bits, random_model, random_params
from safetensors.numpy import save_file

from convert import to_hf, transformers_check
from convert.transformers_check import unavailable
from minimind_jax import hf_format
from minimind_jax.config import RopeScaling
from minimind_jax.errors import UserError
from minimind_jax.inference import Options, generate
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.workdir import Workdir, load_model, save_imported

CONFIGS = {
    "llama-tied-gqa": LLAMA,
    "llama-untied-mha": dataclasses.replace(LLAMA, n_kv_heads=4, tie_embeddings=False),
    "qwen3-tied-mqa": dataclasses.replace(QWEN3, tie_embeddings=True, rope_scaling=RopeScaling()),
    "qwen3-untied-yarn": QWEN3,
}
SLOW = ("llama-untied-mha", "qwen3-tied-mqa")  # seconds each; their logits are compared in any case
PROMPTS = (
    "中国的首都是", "写一首关于秋天的诗：", "请解释什么是机器学习。", "1 加 1 等于几？", "从前有座山，山里有座庙",
    "The capital of France is", "Write a short poem about autumn:", "Explain gravity to a child.",
    "def fibonacci(n):", "Translate 你好 into English:",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread():
    """Models this small gain nothing from two, which wait for each other where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def asked(monkeypatch):
    """Exports ask transformers, as they do outside the tests."""
    monkeypatch.setattr(transformers_check, "unavailable", unavailable)


@pytest.fixture(scope="module", params=CONFIGS)
def exported(request, tmp_path_factory):
    """A model and its export in float32, which transformers has not seen yet."""
    model = random_model(CONFIGS[request.param])
    directory = tmp_path_factory.mktemp(request.param) / "out"
    to_hf.export(model, directory)
    return model, directory


def test_logits_equal_transformers(exported):
    model, directory = exported
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert type(theirs).__name__ == ("Qwen3ForCausalLM" if model.config.qk_norm else "LlamaForCausalLM")
    assert not any(report.values()), report
    assert theirs.dtype == torch.float32
    tokens = np.arange(300) * 7919 % model.config.vocab_size
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(tokens[None])).logits[0].numpy()
    ours = transformers_check.own_logits(model.config, model.params, tokens)
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    "config", [pytest.param(c, marks=[pytest.mark.slow] * (n in SLOW), id=n) for n, c in CONFIGS.items()]
)
def test_greedy_generation_equals_transformers(config, tmp_path):
    model = random_model(config)
    to_hf.export(model, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    theirs.generation_config.eos_token_id = None  # all run to the end
    encoded = model.tokenizer.encode_batch(PROMPTS)
    prompts = [ids[: min(map(len, encoded))] for ids in encoded]  # of one length: a batch without padding
    ours = generate(config, model.params, prompts, Options(max_new_tokens=64), eos_id=-1)
    ids = torch.tensor(prompts)
    made = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False)
    assert made[:, ids.shape[1] :].tolist() == ours
    assert len({tuple(new_tokens) for new_tokens in ours}) == len(PROMPTS)  # else they would say nothing


@pytest.mark.slow
def test_a_sharded_bfloat16_export_passes_the_check_and_reads_back(asked, tmp_path, capsys):
    save_imported(Workdir(tmp_path / "w"), QWEN3, random_params(QWEN3), load_tokenizer(), "test")
    to_hf.main(f"--model {tmp_path}/w --out {tmp_path}/out --dtype bfloat16 --max-shard-size 0.1MB".split())
    found = capsys.readouterr().out.splitlines()[-1]
    assert found.startswith(f"transformers {transformers.__version__} computes the same logits (within ")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    rounded = hf_format.cast_params(random_params(QWEN3), "bfloat16")
    assert equal_bits(load_model(tmp_path / "out").params, jax.tree.map(lambda a: a.astype(np.float32), rounded))


@pytest.mark.slow
def test_an_export_that_transformers_computes_otherwise_is_removed(asked, tmp_path, monkeypatch):
    write = hf_format.write_config

    def with_another_epsilon(directory, config, **options):
        write(directory, dataclasses.replace(config, norm_eps=3e-4), **options)

    monkeypatch.setattr(hf_format, "write_config", with_another_epsilon)
    monkeypatch.setattr(hf_format, "read_config", lambda directory: LLAMA)  # our own reading sees nothing
    with pytest.raises(UserError, match=r"transformers .* computes other logits .* nothing was kept"):
        to_hf.export(random_model(LLAMA), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_export_that_transformers_cannot_load_is_removed(asked, tmp_path, monkeypatch):
    write = to_hf.write_model_card

    def spoil(directory, *rest):
        write(directory, *rest)
        edit_json(directory / "config.json", hidden_act="no such function")

    monkeypatch.setattr(to_hf, "write_model_card", spoil)
    monkeypatch.setattr(hf_format, "read_config", lambda directory: LLAMA)  # our own reading sees nothing
    with pytest.raises(
        UserError, match=r"transformers cannot load the export \(.*no such function.*\): nothing was kept"
    ):
        to_hf.export(random_model(LLAMA), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("spoil", ["tensor", "tokenizer", "end"])
def test_what_transformers_reads_otherwise_is_named(spoil, asked, tmp_path):
    config = dataclasses.replace(LLAMA, tie_embeddings=False)
    model, out = random_model(config), tmp_path / "out"
    out.mkdir()
    model.tokenizer.save(out)
    ids = {"bos_id": 1, "eos_id": 0 if spoil == "end" else 2, "pad_id": 0}
    hf_format.write_config(out, config, dtype="float32", **ids)
    tensors = hf_format.to_hf_tensors(model.params, config)
    if spoil == "tensor":
        del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    if spoil == "tokenizer":
        edit_json(out / "tokenizer.json", normalizer={"type": "Lowercase"})
    expected = {
        "tensor": r"as it is \(model\.layers\.1\.mlp\.up_proj\.weight missing",
        "tokenizer": "makes other tokens of .Snow",
        "end": "ends answers with token 0, the tokenizer with 2",
    }
    with pytest.raises(UserError, match=expected[spoil]):
        transformers_check.check(out, config, model.params, model.tokenizer)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        ({}, None),
        ({"problem": "lm_head.weight unexpected keys"}, r"does not load the export as it is \(lm_head\.weight unexp"),
        ({"token_ids": [1]}, "makes other tokens of .Snow"),
        ({"marked_ids": [1]}, "makes other tokens of the exported tokenizer's added ones"),
        ({"rendered": "Hi"}, "renders .*Hi.* otherwise"),
        ({"eos_id": [2, 3]}, r"ends answers with token \[2, 3\]"),
        ({"scale": 1 + 3e-5}, "computes other logits from the export: they differ by 3"),
        ({"scale": np.nan}, "computes other logits"),
        ({"drop": 1}, "computes other logits"),
    ],
    ids=str,
)
def test_whatever_differs_is_named(spoil, named, asked, tmp_path, monkeypatch):
    model = random_model(LLAMA)

    def answer(request):
        ours = transformers_check.own_logits(LLAMA, model.params, np.array(request["tokens"]))
        np.save(request["logits"], ours[spoil.get("drop", 0) :] * spoil.get("scale", 1 + 1e-6))
        good = {
            "version": "9",
            "problem": "",
            "token_ids": model.tokenizer.encode(request["text"]),
            "marked_ids": model.tokenizer.encode_rendered(request["marked"]),
            "rendered": model.tokenizer.apply_chat_template(request["messages"]),
            "eos_id": 2,
        }
        return good | spoil

    monkeypatch.setattr(transformers_check, "_ask", answer)
    if named is None:
        assert "transformers 9 computes the same" in transformers_check.check(
            tmp_path, LLAMA, model.params, model.tokenizer
        )
        return
    with pytest.raises(UserError, match=named):
        transformers_check.check(tmp_path, LLAMA, model.params, model.tokenizer)


def test_without_torch_or_with_a_broken_one_the_export_is_done_and_says_so(asked, tmp_path, monkeypatch):
    find = transformers_check.importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(
            transformers_check.importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
        )
        found = to_hf.export(random_model(LLAMA), tmp_path / "absent")
    assert found == "not checked with transformers: torch not installed"
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise ImportError('libcudart.so is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    found = to_hf.export(random_model(LLAMA), tmp_path / "out")
    assert "cannot be imported" in found and "libcudart.so is missing" in found
    assert load_model(tmp_path / "out").step == 0 and "torch" in sys.modules


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("5GB", 5 * 10**9), ("300mb", 3 * 10**8), ("1.5 KB", 1500), ("77B", 77), ("2TB", 2 * 10**12)]
)
def test_shard_sizes(text, n_bytes):
    assert to_hf.shard_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "5", "GB", "0GB", "0.1B", "5 XB", "1e3MB"])
def test_shard_sizes_that_are_none_are_named(text, capsys):
    with pytest.raises(SystemExit):
        to_hf.main(["--model", "m", "--out", "o", "--max-shard-size", text])
    assert f"{text!r} is no size such as 5GB" in capsys.readouterr().err
