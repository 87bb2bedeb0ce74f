"""What the conversion commands say to do is done, to the letter, and helps."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from convert_helpers import LLAMA, QWEN3, edit_json, equal_bits, random_model, random_params

from convert import from_hf, from_torch, to_gguf, to_hf, to_torch
from minimind_jax import hf_format
from minimind_jax.config import RopeScaling
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.tokenizer.load import SHIPPED
from minimind_jax.workdir import Workdir, load_model, save_imported

PLAIN = dataclasses.replace(QWEN3, rope_scaling=RopeScaling())
COMMANDS = {"from_hf": from_hf.main, "from_torch": from_torch.main, "to_hf": to_hf.main, "to_torch": to_torch.main}


def message(main, *argv: object) -> str:
    with pytest.raises(SystemExit) as error:
        main([str(a) for a in argv])
    assert error.value.code not in (0, None)
    return str(error.value.code)


def run(main, *argv: object) -> None:
    main([str(a) for a in argv])


def run_line(line: str, **places: object) -> None:
    """`python -m convert.X ...` as a message spells it out, with its capital words filled in."""
    program, *argv = shlex.split(line.split("python -m convert.", 1)[1])
    run(COMMANDS[program], *(places.get(word, word) for word in argv))


def workdir(path: Path, config=LLAMA, params=None) -> Path:
    save_imported(Workdir(path), config, random_params(config) if params is None else params, load_tokenizer(), "test")
    return path


def pickled(directory: Path, config, name: str) -> Path:
    """A Hugging Face directory whose weights are a pickle."""
    model = random_model(config)
    to_hf.export(model, directory)
    (directory / "model.safetensors").unlink()
    state = {n: torch.from_numpy(a.copy()) for n, a in hf_format.to_hf_tensors(model.params, config).items()}
    torch.save(state, directory / name)
    return directory


@pytest.mark.parametrize("config", [LLAMA, QWEN3, dataclasses.replace(LLAMA, n_heads=2, n_kv_heads=1)], ids=str)
def test_pickled_weights_of_a_directory(config, tmp_path):
    """Whatever config.json says is kept, which a bare state dict does not know."""
    source = pickled(tmp_path / "hf", config, "pytorch_model.bin")
    said = message(to_hf.main, "--model", source, "--out", tmp_path / "out")
    run_line(re.findall(r"`(.*?)`", said)[0], WORKDIR=tmp_path / "w")
    model = load_model(tmp_path / "w")
    assert model.config == config and equal_bits(model.params, random_params(config))


def test_a_state_dict_in_a_directory(tmp_path):
    source = pickled(tmp_path / "hf", PLAIN, "full_sft_512.pth")
    said = message(to_hf.main, "--model", source, "--out", tmp_path / "out")
    run_line(re.findall(r"`(.*?)`", said)[0], WORKDIR=tmp_path / "w")
    assert equal_bits(load_model(tmp_path / "w").params, random_params(PLAIN))


def test_pickled_weights_that_are_not_tied(tmp_path):
    source = pickled(tmp_path / "hf", PLAIN, "pytorch_model.bin")
    edit_json(source / "config.json", tie_word_embeddings=True)
    said = message(from_hf.main, "--model", source, "--out", tmp_path / "w")
    assert f"set tie_word_embeddings to false in {source / 'config.json'}" in said
    edit_json(source / "config.json", tie_word_embeddings=False)
    run(from_hf.main, "--model", source, "--out", tmp_path / "w")
    assert equal_bits(load_model(tmp_path / "w").params, random_params(PLAIN))


def test_safetensors_that_are_not_tied(tmp_path):
    to_hf.export(random_model(PLAIN), tmp_path / "hf")
    edit_json(tmp_path / "hf" / "config.json", tie_word_embeddings=True)
    said = message(to_hf.main, "--model", tmp_path / "hf", "--out", tmp_path / "out")
    assert "tie_word_embeddings=true" in said and "set it to false to keep both" in said
    edit_json(tmp_path / "hf" / "config.json", tie_word_embeddings=False)
    run(to_hf.main, "--model", tmp_path / "hf", "--out", tmp_path / "out")


def test_the_way_back_that_to_torch_prints(tmp_path, capsys):
    config = dataclasses.replace(LLAMA, norm_eps=3e-6, rope_theta=5e5)
    run(to_torch.main, "--model", workdir(tmp_path / "w", config), "--out", tmp_path / "m.pth", "--dtype", "float32")
    line = next(text for text in capsys.readouterr().out.splitlines() if text.startswith("back: "))
    run_line(line, WORKDIR=tmp_path / "back")
    back = load_model(tmp_path / "back")
    assert back.config == config and equal_bits(back.params, random_params(config))


def test_head_counts_and_tokenizers_of_state_dicts(tmp_path, capsys):
    config = dataclasses.replace(LLAMA, n_heads=3, n_kv_heads=1, head_dim=10, dim=36, vocab_size=6400)
    state = hf_format.to_hf_tensors(random_params(config), config)
    torch.save({n: torch.from_numpy(a.copy()) for n, a in state.items()}, tmp_path / "m.pth")
    said = message(from_torch.main, "--weights", tmp_path / "m.pth", "--out", tmp_path / "w")
    assert "give the model's own --n-heads and --n-kv-heads" in said
    heads = ["--n-heads", 3, "--n-kv-heads", 1]
    run(from_torch.main, "--weights", tmp_path / "m.pth", "--out", tmp_path / "w", *heads)
    assert "name MiniMind's directory model by --tokenizer" in capsys.readouterr().err
    named = ["--out", tmp_path / "named", "--tokenizer", SHIPPED]
    run(from_torch.main, "--weights", tmp_path / "m.pth", *named, *heads)
    assert not capsys.readouterr().err
    assert load_model(tmp_path / "named").config.n_heads == 3


@pytest.mark.parametrize("main", [to_hf.main, to_torch.main, to_gguf.main], ids=["to_hf", "to_torch", "to_gguf"])
def test_what_is_there_is_replaced_by_force_or_left_under_another_name(main, tmp_path):
    suffix = {to_torch.main: ".pth", to_gguf.main: ".gguf"}.get(main, "")
    model, out = workdir(tmp_path / "w"), tmp_path / f"out{suffix}"
    run(main, "--model", model, "--out", out)
    said = message(main, "--model", model, "--out", out)
    assert "name another" in said and "replace it with --force" in said
    run(main, "--model", model, "--out", out, "--force")
    run(main, "--model", model, "--out", tmp_path / f"other{suffix}")


def test_steps_of_a_hugging_face_directory(tmp_path):
    to_hf.export(random_model(LLAMA), tmp_path / "hf")
    said = message(to_hf.main, "--model", tmp_path / "hf", "--out", tmp_path / "out", "--step", 3)
    assert "leave --step away" in said
    run(to_hf.main, "--model", tmp_path / "hf", "--out", tmp_path / "out")


def test_a_broken_last_checkpoint_leaves_the_one_before(tmp_path):
    import orbax.checkpoint as ocp

    good, broken = random_params(LLAMA), random_params(LLAMA)
    broken["embed"][5, 3] = np.nan
    target = Workdir(workdir(tmp_path / "w", params=good))
    with ocp.CheckpointManager(target.checkpoints.absolute()) as manager:
        items = ocp.args.Composite(params=ocp.args.StandardSave(broken), meta=ocp.args.JsonSave({"step": 1}))
        manager.save(1, args=items)
    said = message(to_hf.main, "--model", target.path, "--out", tmp_path / "out")
    assert "parameter embed holds NaN" in said and "earlier checkpoint by --step" in said
    run(to_hf.main, "--model", target.path, "--out", tmp_path / "out", "--step", 0)
    assert equal_bits(load_model(tmp_path / "out").params, good)


def test_weights_beyond_a_narrow_dtype(tmp_path):
    params = random_params(LLAMA)
    params["embed"][0, 0] = 1e6
    said = message(to_hf.main, "--model", workdir(tmp_path / "w", params=params), "--out", tmp_path / "o", "--dtype", "float16")  # noqa: E501 # fmt: skip
    assert "export as bfloat16 or float32" in said
    for dtype in ("bfloat16", "float32"):
        run(to_hf.main, "--model", tmp_path / "w", "--out", tmp_path / dtype, "--dtype", dtype)


def test_stretching_the_context(tmp_path):
    model, out = workdir(tmp_path / "w"), tmp_path / "out"
    said = message(to_hf.main, "--model", model, "--out", out, "--yarn-original", 64)
    assert "belongs to --yarn-factor: add that, or leave it away" in said
    said = message(to_hf.main, "--model", model, "--out", out, "--yarn-factor", 4)
    assert "add --yarn-original TOKENS" in said
    run(to_hf.main, "--model", model, "--out", out, "--yarn-factor", 4, "--yarn-original", 64)
    said = message(to_hf.main, "--model", out, "--out", tmp_path / "again", "--yarn-factor", 4)
    assert "leave --yarn-factor away" in said
    run(to_hf.main, "--model", out, "--out", tmp_path / "again")


def test_a_tokenizer_without_its_file(tmp_path):
    """Saved with the fast tokenizer of transformers, or trained."""
    import transformers

    from minimind_jax.tokenizer.__main__ import main as tokenizer_main

    source = tmp_path / "hf"
    to_hf.export(random_model(LLAMA), source)
    (source / "tokenizer.json").unlink()
    said = message(to_hf.main, "--model", source, "--out", tmp_path / "out")
    assert "save it with Hugging Face's fast tokenizer" in said and "python -m minimind_jax.tokenizer train" in said
    transformers.AutoTokenizer.from_pretrained(SHIPPED).save_pretrained(source)
    run(to_hf.main, "--model", source, "--out", tmp_path / "out")
    assert load_model(tmp_path / "out").tokenizer.rules == load_tokenizer().rules
    (tmp_path / "a.jsonl").write_text('{"text": "the sea was calm and the sea was wide"}\n' * 5)
    line = ["train", "--data", tmp_path / "a.jsonl", "--vocab-size", 300, "--out", tmp_path / "trained"]
    with pytest.raises(Exception, match="give more data or lower it") as error:
        tokenizer_main([str(a) for a in line])
    (size,) = re.findall(r"yield only (\d+) entries", str(error.value))
    tokenizer_main([str(a) for a in [*line[:4], size, *line[5:]]])
    assert load_tokenizer(str(tmp_path / "trained")).vocab_size == int(size)


def test_templates_that_ollama_cannot_have(tmp_path):
    model = workdir(tmp_path / "w")
    (model / "tokenizer" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    said = message(to_gguf.main, "--model", model, "--out", tmp_path / "m.gguf", "--modelfile")
    assert "--modelfile" in said and "leave it out" in said
    run(to_gguf.main, "--model", model, "--out", tmp_path / "m.gguf")
