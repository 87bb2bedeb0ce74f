"""What convert.from_torch refuses, and how it names it."""

import dataclasses
import os

import numpy as np
import pytest
import torch
from convert_helpers import LLAMA, QWEN3, random_params

from convert import from_torch, pth
from convert.from_torch import Given
from minimind_jax import hf_format
from minimind_jax.config import RopeScaling
from minimind_jax.errors import UserError

LAYER = "model.layers.0"
LLAMAS = Given(n_heads=4)
QWEN = dataclasses.replace(QWEN3, rope_scaling=RopeScaling())


class Code:
    """Runs something when it is unpickled by a reader that lets it."""

    def __reduce__(self):
        return (os.mkdir, ("was-run",))


def state(config):
    return {n: torch.from_numpy(a) for n, a in hf_format.to_hf_tensors(random_params(config), config).items()}


@pytest.fixture(scope="module")
def llama():
    return state(LLAMA)


@pytest.fixture(scope="module")
def qwen3():
    return state(QWEN)


def message(content, directory, given=LLAMAS):
    """What is said of a file that holds `content`; the workdir must not come into being."""
    torch.save(content, directory / "m.pth")
    with pytest.raises(UserError) as error:
        from_torch.import_state_dict(directory / "m.pth", directory / "w", "", given)
    assert [p.name for p in directory.iterdir()] == ["m.pth"]
    assert "\n" not in str(error.value)
    return str(error.value)


def drop(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def put(name, *shape, dtype=torch.float32):
    return lambda tensors: tensors | {name: torch.zeros(shape, dtype=dtype)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop("model.norm.weight"), "lacks model.norm.weight"),
        (drop("model.embed_tokens.weight"), "lacks model.embed_tokens.weight"),
        (drop(f"{LAYER}.self_attn.q_proj.weight"), f"lacks {LAYER}.self_attn.q_proj.weight"),
        (drop(f"{LAYER}.mlp.gate_proj.weight"), f"lacks {LAYER}.mlp.gate_proj.weight"),
        (drop("model.layers.1.mlp.up_proj.weight"), "lacks model.layers.1.mlp.up_proj.weight"),
        (put("model.layers.3.mlp.up_proj.weight", 48, 32), "lacks model.layers.2.input_layernorm.weight"),
        (put(f"{LAYER}.self_attn.q_proj.bias", 32), f"unexpected {LAYER}.self_attn.q_proj.bias"),
        (put("vision.proj.weight", 2, 2), "unexpected vision.proj.weight"),
        (put("model.layers.1.mlp.up_proj.weight", 47, 32), "has shape (47, 32), the sizes of its embedding"),
        (put("model.embed_tokens.weight", 32), "model.embed_tokens.weight has shape (32,), which is not 2-dim"),
        (put("model.embed_tokens.weight", 6464, 0), "model.embed_tokens.weight has shape (6464, 0)"),
        (put("lm_head.weight", 6000, 32), "lm_head.weight has shape (6000, 32)"),
        (put("model.norm.weight", 32, dtype=torch.float64), "norm.weight is a torch.strided tensor of torch.float64"),
        (put("model.norm.weight", 32, dtype=torch.int8), "torch.int8"),
        (put(f"{LAYER}.mlp.gate.weight", 4, 32), f"{LAYER}.mlp.gate.weight belongs to a mixture of experts"),
        (put(f"{LAYER}.mlp.experts.0.up_proj.weight", 4, 32), "mlp.experts.0.up_proj.weight belongs to a mixture"),
        (put(f"{LAYER}.mlp.shared_experts.0.up_proj.weight", 4, 32), "belongs to a mixture"),
        (put(f"{LAYER}.self_attn.q_proj.lora.A.weight", 8, 32), "q_proj.lora.A.weight is a LoRA adapter"),
        (put(f"{LAYER}.self_attn.q_proj.lora_A.weight", 8, 32), "q_proj.lora_A.weight is a LoRA adapter"),
        (put("_orig_mod.model.norm.weight", 32), "holds model.norm.weight twice, once as _orig_mod.model.norm.weight"),
        (lambda tensors: tensors | {"step": 7}, "'step' is a int, not a tensor"),
        (lambda tensors: {7: tensors["model.norm.weight"]}, "7 is a Tensor"),
        (lambda tensors: tensors | {"x": torch.zeros(2).to_sparse()}, "x is a torch.sparse_coo tensor"),
        (lambda tensors: tensors | {"x": torch.zeros(2, device="meta")}, "on meta"),
        (lambda tensors: {"tok_embeddings.weight": torch.zeros(9, 3)}, "first of its tensors is tok_embeddings.weight"),
        (lambda tensors: {}, "holds an empty dict"),
        (lambda tensors: {"model": {}, "epoch": 1}, "holds an empty dict"),
        (lambda tensors: list(tensors.values()), "holds a list, not a state dict"),
        (lambda tensors: torch.nn.Linear(2, 2), "holds code (torch.nn.modules.linear.Linear), which is not run"),
        (lambda tensors: tensors | {"x": Code()}, "holds code (posix.mkdir), which is not run"),
    ],
)  # fmt: skip
def test_state_dicts_that_are_none_of_ours_are_named(change, named, llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = message(change(llama), tmp_path)
    assert named in said and str(tmp_path / "m.pth") in said


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (Given(), None),
        (Given(n_heads=4, n_kv_heads=1), None),
        (Given(n_heads=2), "q_proj.weight has 40 rows, which do not make 2 heads with q_norm weights of length 10"),
        (Given(n_kv_heads=2), "k_proj.weight has 10 rows, which do not make 2 heads with q_norm weights of length 10"),
    ],
    ids=str,
)
def test_heads_that_contradict_the_q_norm(given, named, qwen3, tmp_path):
    if named:
        assert named in message(qwen3, tmp_path, given)
        return
    torch.save(qwen3, tmp_path / "m.pth")
    config = from_torch.import_state_dict(tmp_path / "m.pth", tmp_path / "w", "", given)
    assert config == dataclasses.replace(QWEN, rope_theta=1e6, max_seq_len=32768)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (Given(n_heads=3), "q_proj.weight has 32 rows, which do not make 3 heads with --n-heads 3"),
        (Given(n_heads=1), "k_proj.weight has 16 rows, which do not make whole heads with --n-heads 1"),
        (Given(n_heads=64), "q_proj.weight has 32 rows"),
        (Given(n_heads=4, n_kv_heads=4), "k_proj.weight has 16 rows, which do not make 4 heads with --n-heads 4"),
        (Given(n_kv_heads=3), "32 rows, which do not make whole heads with --n-kv-heads 3"),
        (Given(n_heads=32), "head_dim=1 is odd"),
        (Given(n_heads=4, rope_theta=-1.0), "rope_theta=-1"),
        (Given(n_heads=4, norm_eps=0.0), "norm_eps=0"),
        (Given(n_heads=4, max_seq_len=0), "max_seq_len=0"),
    ],
    ids=str,
)
def test_flags_that_do_not_fit_the_shapes(given, named, llama, tmp_path):
    said = message(llama, tmp_path, given)
    assert named in said and str(tmp_path / "m.pth") in said


@pytest.mark.parametrize("flag", ["--n-heads", "--n-kv-heads"])
def test_no_heads_at_all(flag, tmp_path):
    with pytest.raises(SystemExit) as error:
        from_torch.main(["--weights", "m.pth", "--out", str(tmp_path / "w"), flag, "0"])
    assert error.value.code == f"error: {flag} 0 must be at least 1"


def test_a_tokenizer_that_is_too_large(tmp_path):
    small = state(dataclasses.replace(LLAMA, vocab_size=6000))
    said = message(small, tmp_path)
    assert "has 6400 entries" in said and "6000 rows: name the model's own by --tokenizer" in said


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickle"])
def test_a_damaged_file_is_named(zipped, llama, tmp_path):
    file = tmp_path / "m.pth"
    torch.save({"a": llama["model.norm.weight"]}, file, _use_new_zipfile_serialization=zipped)
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    cut = [whole[:n] for n in (0, 1, 7, 100, len(whole) // 2, len(whole) - 1)]
    flipped = [bytearray(whole) for _ in range(150)]
    for content in flipped:
        content[rng.integers(len(whole))] ^= 1 << rng.integers(8)
    refused = 0
    for content in (b"hello" * 30, b"\x80\x02", *cut, *flipped):
        file.write_bytes(content)
        try:
            pth.StateDict(file)  # some bits, such as those of the numbers, leave a good file
        except UserError as e:
            assert str(file) in str(e) and "\n" not in str(e)
            refused += 1
    assert refused > 8


def test_files_that_are_not_there_or_in_the_way(llama, tmp_path):
    with pytest.raises(UserError, match=r"nothing\.pth is not a file"):
        from_torch.import_state_dict(tmp_path / "nothing.pth", tmp_path / "w")
    with pytest.raises(UserError, match="is not a file"):
        from_torch.import_state_dict(tmp_path, tmp_path / "w")
    torch.save(llama, tmp_path / "m.pth")
    (tmp_path / "w").mkdir()
    with pytest.raises(UserError, match="w exists already"):
        from_torch.import_state_dict(tmp_path / "m.pth", tmp_path / "w")
    with pytest.raises(UserError, match="no tokenizer directory at"):
        from_torch.import_state_dict(tmp_path / "m.pth", tmp_path / "v", str(tmp_path / "none"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.pth", "w"]
