"""MiniMind's .pth state dicts in both directions, against torch and transformers' models."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from convert_helpers import LLAMA, QWEN3, command, equal_bits, random_model, random_params
from hypothesis import assume, given, settings
from test_convert_config import configs

from convert import from_torch, pth, to_torch
from convert.from_torch import Given, infer_config
from convert.transformers_check import own_logits
from minimind_jax import hf_format
from minimind_jax.config import ModelConfig, RopeScaling
from minimind_jax.errors import UserError
from minimind_jax.model import abstract_params
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.tokenizer.load import SHIPPED
from minimind_jax.workdir import Workdir, load_model, save_imported

# MiniMind's proportions: 8 heads; 2 of keys and values without q_norm (MiniMind2), 4 with (MiniMind-3).
MINIMIND = {
    "minimind2": transformers.LlamaConfig(
        vocab_size=6400, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=2, tie_word_embeddings=True, rms_norm_eps=1e-5, rope_theta=1e6,
        max_position_embeddings=32768, initializer_range=0.2,
    ),
    "minimind3": transformers.Qwen3Config(
        vocab_size=6400, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=4, head_dim=6, tie_word_embeddings=True, rms_norm_eps=1e-6, rope_theta=1e6,
        max_position_embeddings=32768, initializer_range=0.2,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=MINIMIND)
def minimind(request):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(MINIMIND[request.param]).eval()


def run(main, line):
    """The message that a command exits with, or None."""
    try:
        main(line.split())
    except SystemExit as e:
        return str(e.code)


def saved(content, path):
    torch.save(content, path)
    return path


# --- from_torch ---------------------------------------------------------------------------------------


def test_logits_of_an_imported_model_equal_transformers(minimind, tmp_path):
    state = minimind.state_dict()
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
    saved(state, tmp_path / "m.pth")
    assert run(from_torch.main, f"--weights {tmp_path}/m.pth --out {tmp_path}/w --tokenizer {SHIPPED}") is None
    model, theirs = load_model(tmp_path / "w"), minimind.config
    assert (model.config.n_heads, model.config.n_kv_heads) == (theirs.num_attention_heads, theirs.num_key_value_heads)
    assert model.config.tie_embeddings and model.config.qk_norm == (theirs.model_type == "qwen3")
    assert (model.config.norm_eps, model.config.max_seq_len) == (theirs.rms_norm_eps, 32768)
    assert Workdir(tmp_path / "w").read_config()["source"] == str(tmp_path / "m.pth")
    assert (model.step, (tmp_path / "w" / "checkpoints" / "0" / "opt_state").exists()) == (0, False)
    tokens = np.arange(200) * 31 % 6400
    with torch.no_grad():
        expected = minimind(torch.from_numpy(tokens[None])).logits[0].numpy()
    ours = own_logits(model.config, model.params, tokens)
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wrapping", ["bare", "model", "compiled", "ddp", "ddp of compiled in model"])
def test_every_wrapping_reads_alike(wrapping, dtype, minimind, tmp_path):
    state = {name: tensor.to(dtype) for name, tensor in minimind.state_dict().items()}
    prefix = ("module." if "ddp" in wrapping else "") + ("_orig_mod." if "compiled" in wrapping else "")
    content = {prefix + name: tensor for name, tensor in state.items()}
    if "model" in wrapping:
        optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3}]}
        content = {"model": content, "optimizer": optimizer, "epoch": 3, "wandb_id": None}
    read = pth.StateDict(saved(content, tmp_path / "m.pth"))
    assert read.shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name, tensor in state.items():
        np.testing.assert_array_equal(read[name], tensor.float().numpy(), err_msg=name)
        assert read[name].dtype == np.float32


def test_an_untied_head_is_kept_and_a_missing_one_is_tied(tmp_path):
    params = random_params(LLAMA)
    state = {name: torch.from_numpy(a) for name, a in hf_format.to_hf_tensors(params, LLAMA).items()}
    options = f"--tokenizer {SHIPPED} --n-heads 4"
    saved(state, tmp_path / "tied.pth")
    assert run(from_torch.main, f"--weights {tmp_path}/tied.pth --out {tmp_path}/tied {options}") is None
    assert equal_bits(load_model(tmp_path / "tied").params, params)
    head = torch.randn(LLAMA.vocab_size, LLAMA.dim)
    saved(state | {"lm_head.weight": head}, tmp_path / "untied.pth")
    assert run(from_torch.main, f"--weights {tmp_path}/untied.pth --out {tmp_path}/untied {options}") is None
    untied = load_model(tmp_path / "untied")
    assert not untied.config.tie_embeddings
    np.testing.assert_array_equal(untied.params["lm_head"].T, head.numpy())


def test_the_shipped_tokenizer_is_not_taken_in_silence(tmp_path, capsys):
    saved(
        {n: torch.from_numpy(a) for n, a in hf_format.to_hf_tensors(random_params(LLAMA), LLAMA).items()},
        tmp_path / "m",
    )
    assert run(from_torch.main, f"--weights {tmp_path}/m --out {tmp_path}/w") is None
    captured = capsys.readouterr()
    assert "warning: took the shipped tokenizer" in captured.err
    assert "2 layers of 32, 8 heads, 4 for keys and values" in captured.out  # for LLAMA's own 4: --n-heads 4


def shapes_of(config: ModelConfig, with_head: bool = False) -> dict[str, tuple[int, ...]]:
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract_params(config))
    shapes = {name: array.shape for name, array in hf_format.to_hf_tensors(zeros, config).items()}
    return shapes | ({"lm_head.weight": (config.vocab_size, config.dim)} if with_head else {})


@settings(max_examples=40, deadline=None)
@given(configs())
def test_shapes_and_the_flags_that_to_torch_names_give_the_model_back(config):
    config = dataclasses.replace(config, rope_scaling=RopeScaling())
    line = Given.of(config).flags().split()
    options = {
        name.removeprefix("--").replace("-", "_"): value for name, value in zip(line[::2], line[1::2], strict=True)
    }
    types = {"n_heads": int, "n_kv_heads": int, "max_seq_len": int}
    given_ = Given(**{name: types.get(name, float)(value) for name, value in options.items()})
    shapes = shapes_of(config, with_head=True)
    assert infer_config(Path("m.pth"), shapes, given_, config.tie_embeddings) == config
    assume(not config.qk_norm)
    by_kv_heads = dataclasses.replace(given_, n_heads=None, n_kv_heads=config.n_kv_heads)
    assert infer_config(Path("m.pth"), shapes, by_kv_heads, config.tie_embeddings) == config


@pytest.mark.parametrize(
    ("preset", "given_"),
    [("minimind2_small", Given()), ("minimind2", Given()), ("minimind3", Given(norm_eps=1e-5))],
)
def test_our_presets_of_minimind_need_no_flags_for_their_sizes(preset, given_):
    from configs import pretrain

    config = ModelConfig.from_dict(pretrain.get_config(preset).model.to_dict())
    assert infer_config(Path("m.pth"), shapes_of(config), given_, True) == config


# --- to_torch -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "workdir"
    config = dataclasses.replace(QWEN3, tie_embeddings=True)
    save_imported(Workdir(path), config, random_params(config), load_tokenizer(), "test")
    return path


@pytest.mark.parametrize(
    "config",
    [LLAMA, dataclasses.replace(QWEN3, rope_scaling=RopeScaling())],
    ids=["llama-tied", "qwen3-untied"],
)
def test_transformers_models_take_an_exported_state_dict(config, tmp_path):
    model = random_model(config)
    to_torch.export(model, tmp_path / "m.pth", "float32")
    state = torch.load(tmp_path / "m.pth", weights_only=True)
    tied = state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
    assert tied == config.tie_embeddings
    values = hf_format.hf_config(config, dtype="float32", bos_id=1, eos_id=2, pad_id=0)
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**values)).eval()
    theirs.load_state_dict(state, strict=True)
    tokens = np.arange(100) * 31 % config.vocab_size
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens[None])).logits[0].numpy()
    ours = own_logits(config, model.params, tokens)
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_there_and_back_is_the_cast_weights(dtype, workdir, tmp_path):
    assert run(to_torch.main, f"--model {workdir} --out {tmp_path}/deep/m.pth --dtype {dtype}") is None
    state = torch.load(tmp_path / "deep" / "m.pth", weights_only=True)
    assert {str(tensor.dtype) for tensor in state.values()} == {f"torch.{dtype}"}
    to_torch.export(load_model(workdir), tmp_path / "n.pth", dtype)
    line = f"--weights {tmp_path}/n.pth --out {tmp_path}/w --tokenizer {workdir}/tokenizer"
    assert run(from_torch.main, f"{line} --rope-theta 12345.678 --max-seq-len 512") is None
    before, after = load_model(workdir), load_model(tmp_path / "w")
    cast = hf_format.cast_params(before.params, dtype)
    assert equal_bits(after.params, jax.tree.map(lambda a: a.astype(np.float32), cast))
    assert after.config == dataclasses.replace(before.config, rope_scaling=RopeScaling())
    assert after.tokenizer.fingerprint == before.tokenizer.fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "n.pth", "w"]


@pytest.mark.slow
def test_the_command_is_float16_and_names_the_flags_that_bring_it_back(workdir, tmp_path):
    done = command("-m", "convert.to_torch", "--model", workdir, "--out", tmp_path / "m.pth")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/m.pth: float16, step 0 of {workdir}; read back and equal\n" in done.stdout
    assert f"--tokenizer {workdir}/tokenizer --rope-theta 12345.678 --max-seq-len 512\n" in done.stdout
    assert "warning: the file cannot hold the model's rope_scaling" in done.stderr
    assert command("-m", "convert.to_torch", "--model", workdir, "--out", tmp_path / "m.pth").returncode == 1


def test_existing_files_are_kept_without_force(workdir, tmp_path):
    out = tmp_path / "m.pth"
    assert run(to_torch.main, f"--model {workdir} --out {out}") is None
    before = out.read_bytes()
    assert "exists already" in run(to_torch.main, f"--model {workdir} --out {out} --dtype float32")
    assert out.read_bytes() == before
    assert run(to_torch.main, f"--model {workdir} --out {out} --dtype float32 --force") is None
    assert len(out.read_bytes()) > 1.5 * len(before)
    (tmp_path / "notes.txt").write_text("precious")
    for name in ("notes.txt", "."):
        assert "--force does not replace it" in run(to_torch.main, f"--model {workdir} --out {tmp_path}/{name} --force")
    assert (tmp_path / "notes.txt").read_text() == "precious"


def flip_a_bit(params, config):
    params = jax.tree.map(np.array, params)
    params["blocks"]["attn"]["k"].view(np.uint8).flat[5] ^= 1
    return params, config


def test_a_failed_verification_removes_the_output_and_keeps_the_old_one(tmp_path, monkeypatch):
    to_torch.export(random_model(LLAMA, seed=1), tmp_path / "m.pth")
    before, write = (tmp_path / "m.pth").read_bytes(), pth.write
    monkeypatch.setattr(pth, "write", lambda file, params, config: write(file, *flip_a_bit(params, config)))
    with pytest.raises(UserError, match=r"parameter blocks\.attn\.k reads back differently: nothing was kept"):
        to_torch.export(random_model(LLAMA), tmp_path / "m.pth", force=True)
    another = dataclasses.replace(LLAMA, n_layers=1)
    monkeypatch.setattr(pth, "write", lambda file, *_: write(file, random_params(another), another))
    with pytest.raises(UserError, match="read back as another architecture: nothing was kept"):
        to_torch.export(random_model(LLAMA), tmp_path / "n.pth")

    def other_head(file, params, config):
        untied = dataclasses.replace(config, tie_embeddings=False)
        write(file, params | {"lm_head": params["embed"].T + params["embed"].dtype.type(1)}, untied)

    monkeypatch.setattr(pth, "write", other_head)
    with pytest.raises(UserError, match=r"lm_head\.weight reads back differently: nothing was kept"):
        to_torch.export(random_model(LLAMA), tmp_path / "n.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["m.pth"] and (tmp_path / "m.pth").read_bytes() == before


def test_an_interrupted_or_impossible_write_leaves_nothing(tmp_path, monkeypatch):
    model = random_model(LLAMA)
    model.params["embed"][7, 3] = 1e6
    with pytest.raises(UserError, match=r"embed holds 1e[+]06, beyond float16's range"):
        to_torch.export(model, tmp_path / "m.pth")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be created"):
        to_torch.export(random_model(LLAMA), tmp_path / "file" / "m.pth")
    for error, shown in ((RuntimeError("write failed"), UserError), (KeyboardInterrupt(), KeyboardInterrupt)):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(torch, "save", fail)
        with pytest.raises(shown):
            to_torch.export(random_model(LLAMA), tmp_path / "m.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_without_torch_both_commands_say_how_to_get_it(workdir, tmp_path):
    code = "import sys, runpy; sys.modules['torch'] = None; sys.argv = sys.argv[1:]\n"
    code += "runpy.run_module(sys.argv[0], run_name='__main__')"
    (tmp_path / "m.pth").touch()
    first = command("-c", code, "convert.to_torch", "--model", workdir, "--out", tmp_path / "n.pth")
    second = command("-c", code, "convert.from_torch", "--weights", tmp_path / "m.pth", "--out", tmp_path / "w")
    for done in (first, second):
        assert done.returncode == 1 and "pip install torch" in done.stderr and "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["m.pth"]
