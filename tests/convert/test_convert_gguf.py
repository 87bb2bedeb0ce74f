"""GGUF files as such: names, types, metadata, the check after writing, and what is refused. No engine needed."""

import dataclasses
import json

import gguf
import ml_dtypes
import numpy as np
import pytest
from convert_helpers import LLAMA, QWEN3, command, edit_json, random_model, random_params
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from llama_cpp_helpers import small_model, write_tokenizer

from convert import gguf_format, to_gguf
from convert.to_gguf import export
from minimind_jax import hf_format
from minimind_jax.errors import UserError
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.workdir import Workdir, load_model, save_imported

WIDE = dataclasses.replace(QWEN3, dim=64, head_dim=32, ffn_dim=48)  # 48: rows that q8_0 does not fill


def read(file):
    reader = gguf.GGUFReader(file)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "chatty"
    save_imported(Workdir(path), WIDE, random_params(WIDE), load_tokenizer(), "test")
    return path


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A small tokenizer directory to break."""
    return write_tokenizer(tmp_path_factory.mktemp("words") / "tokenizer", "", ["the cat and the dog 猫和狗" * 3])


def run(*argv):
    """The message that the command exits with, or None."""
    try:
        to_gguf.main([str(a) for a in argv])
    except SystemExit as e:
        return str(e.code)


# --- What is in a file ---------------------------------------------------------------------------------


def test_metadata_describes_the_model_and_its_vocabulary(tmp_path):
    model = random_model(QWEN3, tmp_path / "my model")
    export(model, tmp_path / "model.gguf", "bf16")
    fields, _ = read(tmp_path / "model.gguf")
    shape = {key.removeprefix("qwen3."): value for key, value in fields.items() if key.startswith("qwen3.")}
    assert shape == {
        "vocab_size": 6464,
        "context_length": 512,
        "embedding_length": 24,
        "block_count": 3,
        "feed_forward_length": 40,
        "attention.head_count": 4,
        "attention.head_count_kv": 1,
        "attention.key_length": 10,
        "attention.value_length": 10,
        "attention.layer_norm_rms_epsilon": float(np.float32(1e-6)),
        "rope.dimension_count": 10,
        "rope.freq_base": float(np.float32(12345.678)),
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 128,
    }
    general = {key: value for key, value in fields.items() if key.startswith("general.")}
    assert general == {  # no licence: nothing says one
        "general.architecture": "qwen3",
        "general.type": "model",
        "general.name": "my model",
        "general.size_label": "326K",
        "general.file_type": gguf.LlamaFileType.MOSTLY_BF16,
        "general.quantization_version": 2,
    }
    ours = {key.removeprefix("tokenizer."): value for key, value in fields.items() if key.startswith("tokenizer.")}
    template = (model.tokenizer.path / "chat_template.jinja").read_text(encoding="utf-8")
    assert (ours["ggml.model"], ours["ggml.pre"], ours["chat_template"]) == ("gpt2", "qwen2", template)
    ids = [ours[f"ggml.{name}_token_id"] for name in ("padding", "bos", "eos")]
    assert ids == [0, 1, 2] and ours["ggml.add_bos_token"] is ours["ggml.add_eos_token"] is False
    tokens, types = ours["ggml.tokens"], [gguf.TokenType(t).name for t in ours["ggml.token_type"]]
    assert len(tokens) == len(types) == 6464 == len(set(tokens))
    assert tokens[:4] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>"]
    assert types[:16] == ["CONTROL"] * 3 + ["USER_DEFINED"] * 6 + ["CONTROL"] * 7
    assert set(types[16:6400]) == {"NORMAL"} and set(types[6400:]) == {"UNUSED"}
    spec = json.loads((model.tokenizer.path / "tokenizer.json").read_text(encoding="utf-8"))
    assert {token: i for i, token in enumerate(tokens[:6400])} == spec["model"]["vocab"] | {
        token["content"]: token["id"] for token in spec["added_tokens"]
    }
    assert ours["ggml.merges"] == [" ".join(merge) for merge in spec["model"]["merges"]]


def test_llama_without_yarn_and_merges_as_text(words, tmp_path):
    spec = json.loads((words / "tokenizer.json").read_text())
    pairs = spec["model"]["merges"]
    old_form = tmp_path / "old"
    load_tokenizer(str(words)).save(old_form)
    edit_json(old_form / "tokenizer.json", model=spec["model"] | {"merges": [" ".join(pair) for pair in pairs]})
    export(small_model(old_form), tmp_path / "model.gguf")
    fields, tensors = read(tmp_path / "model.gguf")
    assert fields["general.architecture"] == "llama" and not [key for key in fields if "scaling" in key]
    assert fields["tokenizer.ggml.merges"] == [" ".join(pair) for pair in pairs]
    assert "output.weight" not in tensors and "token_embd.weight" in tensors  # tied


@pytest.mark.parametrize("config", [LLAMA, QWEN3], ids=["llama", "qwen3"])
def test_every_tensor_has_its_name_shape_and_rows(config, words, tmp_path):
    model = small_model(words, config)
    export(model, tmp_path / "model.gguf", "f32")
    _, tensors = read(tmp_path / "model.gguf")
    hf = hf_format.to_hf_tensors(model.params, model.config)
    names = {"embed_tokens": "token_embd", "lm_head": "output", "input_layernorm": "attn_norm", "up_proj": "ffn_up"}
    names |= {"post_attention_layernorm": "ffn_norm", "gate_proj": "ffn_gate", "down_proj": "ffn_down"}
    names |= {f"{x}_proj": f"attn_{x}" for x in "qkv"} | {"o_proj": "attn_output"}
    names |= {f"{x}_norm": f"attn_{x}_norm" for x in "qk"}
    seen = set()
    for name, expected in hf.items():
        parts = name.split(".")
        theirs = names.get(parts[-2], "output_norm") + ".weight"
        theirs = f"blk.{parts[2]}.{theirs}" if parts[1] == "layers" else theirs
        seen.add(theirs)
        if not config.qk_norm and parts[-2] in ("q_proj", "k_proj"):  # row 2i of a head is our row i
            half = np.arange(config.head_dim).reshape(2, -1).T.ravel()
            n_heads = len(expected) // config.head_dim
            expected = expected[np.concatenate([half + head * config.head_dim for head in range(n_heads)])]
        np.testing.assert_array_equal(tensors[theirs].data, expected, err_msg=theirs)
    assert seen == tensors.keys()


@pytest.mark.parametrize("type_name", ["f16", "bf16", "q8_0"])
def test_matrices_are_narrow_and_vectors_stay_f32(type_name, words, tmp_path):
    model = small_model(words, WIDE)
    done = export(model, tmp_path / "model.gguf", type_name)
    _, tensors = read(tmp_path / "model.gguf")
    content = {tensor.name: tensor.value for tensor in gguf_format.tensors(model.params, model.config, "f32")}
    fallbacks = [f"blk.{i}.ffn_down.weight" for i in range(3)]
    assert done.fallbacks == (fallbacks if type_name == "q8_0" else [])
    for name, tensor in tensors.items():
        live, kind = content[name], tensor.tensor_type.name
        got = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(live.shape)
        if live.ndim == 1:
            assert kind == "F32" and np.array_equal(got, live)
        elif type_name == "q8_0" and name not in fallbacks:
            assert kind == "Q8_0"
            step = np.abs(live.reshape(-1, 32)).max(1, keepdims=True) / 127
            error = np.abs(got - live).reshape(-1, 32)
            assert (error < 0.57 * step).all() and error.max() > 0.4 * step.max()
        else:
            dtype = ml_dtypes.bfloat16 if type_name == "bf16" else np.float16
            assert kind == type_name.upper() or name in fallbacks
            assert np.array_equal(got, live.astype(dtype).astype(np.float32))


def test_q8_0_of_tiny_and_empty_rows_is_within_its_rounding(words, tmp_path):
    model = small_model(words)
    model.params["embed"][3] = 0
    model.params["embed"][4] *= 1e-7  # scales that float16 holds with a few bits, or not at all
    model.params["embed"][5] *= 1e-4
    export(model, tmp_path / "model.gguf", "q8_0")
    assert not read(tmp_path / "model.gguf")[1]["token_embd.weight"].data[3].any()


# Blocks of 32 by llama.cpp's own layout (ggml-common.h): a float16 scale, of q5_1 also the smallest value.
def unpack(blocks, kind):
    """Values (rows, 32) of raw blocks (rows, bytes), and the step between two levels (rows, 1)."""
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    nibbles = np.concatenate([blocks[:, -16:] & 15, blocks[:, -16:] >> 4], axis=1).astype(np.int32)
    if kind == "q4_0":
        return (nibbles - 8) * scale, scale
    smallest = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    fifth = np.unpackbits(blocks[:, 4:8], axis=1, bitorder="little").astype(np.int32)
    return (nibbles + 16 * fifth) * scale + smallest, scale


@pytest.mark.parametrize("kind", ["q4_0", "q5_1"])
@pytest.mark.parametrize("tied", [True, False])
def test_few_bits_are_for_the_layers_only(kind, tied, words, tmp_path):
    model = small_model(words, dataclasses.replace(WIDE, tie_embeddings=tied))
    done = export(model, tmp_path / "model.gguf", kind)
    fields, tensors = read(tmp_path / "model.gguf")
    assert gguf.LlamaFileType(fields["general.file_type"]).name == f"MOSTLY_{kind.upper()}"
    assert done.fallbacks == [f"blk.{i}.ffn_down.weight" for i in range(3)]
    assert ("output.weight" in tensors) is not tied
    content = {t.name: t.value for t in gguf_format.tensors(model.params, model.config, "f32")}
    seen = set()
    for name, tensor in tensors.items():
        seen.add(tensor.tensor_type.name)
        if name in ("token_embd.weight", "output.weight"):
            assert tensor.tensor_type.name == "Q8_0"
        elif content[name].ndim > 1 and name not in done.fallbacks:
            assert tensor.tensor_type.name == kind.upper()
            live = content[name].reshape(-1, 32)
            got, step = unpack(tensor.data.reshape(len(live), -1), kind)
            error = np.abs(got - live)
            # Half a step to the nearest level; the value opposite to q4_0's largest has none within its reach.
            assert (error <= 1.01 * np.abs(step)).all() and np.median(error) < 0.3 * np.abs(step).max()
            assert (error > 0.53 * np.abs(step)).mean() <= (0.02 if kind == "q4_0" else 0)
    assert seen == {"F32", "F16", "Q8_0", kind.upper()}


@settings(deadline=None)
@given(
    st.sampled_from(["q8_0", "q5_1", "q4_0"]),
    arrays(np.float32, (4, 32), elements=st.floats(-60000, 60000, width=32)),
    st.sampled_from([1.0, 1e-3, 1e-6, 1e-9]),
)
def test_what_the_quantiser_makes_of_any_rows_is_within_the_rounding(kind, rows, scale):
    tensor = gguf_format.Tensor("x.weight", rows * np.float32(scale), gguf_format.TYPES[kind][0], 0)
    stored = gguf_format._encode(tensor)
    back = gguf.quants.dequantize(stored, tensor.type)
    assert (np.abs(back - tensor.value) <= gguf_format._rounding(tensor.value, tensor.type)).all()


# --- The check after writing ---------------------------------------------------------------------------


def flip(name, byte, bit=0x40):
    def corrupt(path):
        offset = {t.name: t.data_offset for t in gguf.GGUFReader(path).tensors}[name]
        with open(path, "r+b") as file:
            file.seek(offset + byte)
            old = file.read(1)[0]
            file.seek(offset + byte)
            file.write(bytes([old ^ bit]))

    return corrupt


def replace(old, new):
    def corrupt(path):
        content = path.read_bytes()
        assert content.count(old) >= 1 and len(old) == len(new)
        path.write_bytes(content.replace(old, new, 1))

    return corrupt


def cut(path):
    path.write_bytes(path.read_bytes()[:-4000])


@pytest.mark.parametrize(
    ("type_name", "corrupt", "named"),
    [
        ("f32", flip("blk.1.attn_q.weight", 5), "blk.1.attn_q.weight reads back differently"),
        ("f32", flip("output_norm.weight", 0), "output_norm.weight reads back"),
        ("f16", flip("token_embd.weight", 101), "token_embd.weight reads back"),
        ("bf16", flip("blk.0.ffn_up.weight", 1), "blk.0.ffn_up.weight reads back"),
        ("q8_0", flip("blk.0.ffn_up.weight", 7), "blk.0.ffn_up.weight reads back"),
        ("q8_0", flip("blk.0.ffn_up.weight", 1), "blk.0.ffn_up.weight reads back"),  # a scale
        ("q4_0", flip("blk.0.ffn_up.weight", 9, bit=1), "blk.0.ffn_up.weight reads back"),  # to the next level
        *((kind, flip("blk.0.ffn_up.weight", byte), "blk.0.ffn_up.weight reads back")
          for kind in ("q5_1", "q4_0") for byte in (0, 1, 2, 5, 17)),
        ("f16", replace(b"<think>", b"<thunk>"), "tokenizer.ggml.tokens of the exported file reads back"),
        ("f16", replace(b"llama.block_count", b"llama.block_caunt"), "llama.block_caunt of the exported"),
        ("f16", replace(b"blk.1.ffn_up", b"blk.2.ffn_up"), "blk.1.ffn_up.weight reads back"),
        ("f16", cut, "cannot be read back"),
    ],
)  # fmt: skip
def test_what_reads_back_differently_is_not_kept(type_name, corrupt, named, words, tmp_path, monkeypatch):
    model = small_model(words)
    export(model, tmp_path / "model.gguf")
    before, write = (tmp_path / "model.gguf").read_bytes(), gguf_format.write

    def broken_write(path, *rest):
        write(path, *rest)
        corrupt(path)

    monkeypatch.setattr(gguf_format, "write", broken_write)
    for out, force in ((tmp_path / "new.gguf", False), (tmp_path / "model.gguf", True)):
        with pytest.raises(UserError) as error:
            export(model, out, type_name, with_modelfile=True, force=force)
        assert named in str(error.value) and "nothing was kept" in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]
    assert (tmp_path / "model.gguf").read_bytes() == before


def test_rows_in_the_wrong_order_are_seen(words, tmp_path, monkeypatch):
    heads = gguf_format._heads
    model = small_model(words)
    good = gguf_format.tensors(model.params, model.config, "f32")
    monkeypatch.setattr(gguf_format, "_heads", lambda *_: 0)
    unpermuted = gguf_format.tensors(model.params, model.config, "f32")
    monkeypatch.setattr(gguf_format, "_heads", heads)
    values = {"general.architecture": "llama"}
    gguf_format.write(tmp_path / "x.gguf", values, unpermuted)
    with pytest.raises(UserError, match=r"blk\.0\.attn_q\.weight reads back differently"):
        gguf_format.verify(tmp_path / "x.gguf", values, good)
    gguf_format.verify(tmp_path / "x.gguf", values, unpermuted)


def test_a_tensor_too_many_is_seen(words, tmp_path):
    model = small_model(words)
    content = gguf_format.tensors(model.params, model.config, "f32")
    values = {"general.architecture": "llama"}
    gguf_format.write(tmp_path / "x.gguf", values, content)
    with pytest.raises(UserError, match=r"unexpected tensor output_norm\.weight"):
        gguf_format.verify(tmp_path / "x.gguf", values, [t for t in content if t.name != "output_norm.weight"])


def test_a_full_disk_is_one_sentence(words, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(UserError, match=r"model\.gguf.* cannot be written: No space left"):
        export(small_model(words), tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


# --- The command ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_end_to_end_without_torch(workdir, tmp_path):
    code = "import sys, runpy; sys.argv = sys.argv[1:]\ntry: runpy.run_module(sys.argv[0], run_name='__main__')\n"
    code += "finally: print('torch' in sys.modules or 'transformers' in sys.modules)"
    out = tmp_path / "deep" / "chat.gguf"
    arguments = ("convert.to_gguf", "--model", workdir, "--out", out, "--type", "q8_0", "--modelfile")
    done = command("-c", code, *arguments)
    assert done.returncode == 0, done.stderr
    fallback, summary, torch = done.stdout.splitlines()
    assert fallback.startswith("3 matrices are f16") and "blk.0.ffn_down.weight" in fallback
    assert summary == f"{out}: qwen3, q8_0, step 0 of {workdir}; read back and equal"
    assert torch == "False"
    assert sorted(p.name for p in out.parent.iterdir()) == ["Modelfile", "chat.gguf"]
    assert (out.parent / "Modelfile").read_text().startswith("FROM ./chat.gguf\n")
    assert read(out)[0]["general.name"] == "chatty"
    again = command("-m", *arguments)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == f"error: {out} exists already: name another file, or replace it with --force\n"


def test_an_exported_directory_gives_the_same_file(workdir, tmp_path):
    from convert.to_hf import export as export_hf

    export_hf(load_model(workdir), tmp_path / "chatty")
    assert run("--model", workdir, "--out", tmp_path / "a.gguf", "--type", "f32") is None
    assert run("--model", tmp_path / "chatty", "--out", tmp_path / "b.gguf", "--type", "f32") is None
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_force_replaces_only_files_of_this_command(workdir, tmp_path):
    out, recipe = tmp_path / "model.gguf", tmp_path / "Modelfile"
    arguments = ("--model", workdir, "--out", out, "--modelfile")
    assert run(*arguments) is None
    before = out.read_bytes()
    out.unlink()
    assert "Modelfile exists already" in run(*arguments)
    assert not out.exists()
    out.write_bytes(before)
    assert run(*arguments, "--force", "--type", "f32") is None
    assert len(out.read_bytes()) > len(before)
    for file, kind in ((recipe, "Modelfile"), (out, "GGUF file")):
        file.write_text("precious")
        assert f"{file} is no {kind}, so --force does not replace it" in run(*arguments, "--force")
        assert file.read_text() == "precious"
    (tmp_path / "photos").mkdir()
    assert "is no GGUF file" in run("--model", workdir, "--out", tmp_path / "photos", "--force")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("--model", "{here}/nothing"), "nothing is not a directory"),
        (("--model", "{here}"), "no config.json"),
        (("--model", "{workdir}", "--step", "7"), "no checkpoint of step 7"),
    ],
)
def test_bad_input_is_one_sentence(argv, named, workdir, tmp_path):
    message = run(*[a.format(here=tmp_path, workdir=workdir) for a in argv], "--out", tmp_path / "model.gguf")
    assert message.startswith("error: ") and named in message and "\n" not in message
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(workdir, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be created" in run("--model", workdir, "--out", tmp_path / "file" / "model.gguf")


@pytest.mark.parametrize(
    ("type_name", "fits"), [("f16", False), ("q8_0", False), ("q4_0", False), ("bf16", True), ("f32", True)]
)
def test_weights_beyond_the_type_are_refused_by_name(type_name, fits, words, tmp_path):
    model = small_model(words)
    model.params["blocks"]["mlp"]["up"][1, 2, 3] = 70000.0
    if fits:
        export(model, tmp_path / "model.gguf", type_name)
        return
    with pytest.raises(UserError, match=r"blocks\.mlp\.up holds 70000, beyond float16"):
        export(model, tmp_path / "model.gguf", type_name)
    assert not list(tmp_path.iterdir())
