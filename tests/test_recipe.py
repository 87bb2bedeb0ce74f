"""Recipes: every one loads in every form, and a wrong command line gets one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from minimind_jax.config import ModelConfig, from_recipe
from minimind_jax.errors import UserError
from minimind_jax.model import count_params
from minimind_jax.recipe import MODEL_PRESETS, base_recipe, load_recipe

REPOSITORY = Path(__file__).parents[1]
RECIPES = sorted((REPOSITORY / "configs").glob("*.py"))
PRETRAIN = REPOSITORY / "configs" / "pretrain.py"


def load(*arguments: str):
    return load_recipe(["train.py", *arguments])


def error(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        load(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
@pytest.mark.parametrize("argument", ["", *MODEL_PRESETS, "smoke", "tiny,smoke"])
def test_every_recipe_loads_in_every_form(recipe: Path, argument: str):
    values, user_set = load(f"--config={recipe}:{argument}" if argument else f"--config={recipe}")
    config = from_recipe(values)
    assert user_set == set()
    if argument in MODEL_PRESETS:
        sizes = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "qk_norm")
        preset = ModelConfig(**MODEL_PRESETS[argument])
        assert [getattr(config.model, key) for key in sizes] == [getattr(preset, key) for key in sizes]
    if "smoke" in argument:  # a minute on a CPU: about a billion multiplications a step at most
        tokens = config.steps * config.batch_size * config.data.max_seq_len
        assert config.steps > 0 and tokens * count_params(config.model) < 1e11


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_states_its_command(recipe: Path):
    text = recipe.read_text("utf-8")
    assert f"--config configs/{recipe.name}" in text.split('"""')[1]


def test_the_8_gpu_recipe():
    config = from_recipe(load(f"--config={PRETRAIN}")[0])
    assert round(count_params(config.model) / 1e6, 1) == 183.8
    model, optim = config.model, config.optim
    assert (model.dim, model.n_layers, model.n_heads, model.n_kv_heads, model.ffn_dim) == (1024, 16, 8, 2, 2752)
    assert not model.qk_norm and model.tie_embeddings and model.rope_theta == 1e6
    assert (config.epochs, config.data.max_seq_len, optim.lr, optim.schedule) == (12, 1024, 5e-4, "cosine")
    assert optim.warmup_steps > 0 and config.batch_size % (8 * config.accum_steps) == 0


def test_overrides_apply_and_are_reported():
    values, user_set = load(
        "--config",
        f"{PRETRAIN}:tiny",
        "--config.model.dim=128",
        "--config.epochs=2",
        "--config.data.path=a.jsonl:2,b.jsonl",
        "--config.deterministic",
        "--config.sample_prompts=('中国', 'The')",
    )
    assert user_set == {"model.dim", "epochs", "data.path", "deterministic", "sample_prompts"}
    config = from_recipe(values)
    assert (config.model.dim, config.epochs, config.data.path) == (128, 2.0, "a.jsonl:2,b.jsonl")
    assert config.deterministic and config.sample_prompts == ("中国", "The")
    assert config.model.n_layers == MODEL_PRESETS["tiny"]["n_layers"]


def test_the_base_recipe_has_every_key_of_the_config():
    base = base_recipe("pretrain")
    base.stage, base.workdir, base.steps, base.data.path = "pretrain", "out", 1, "a.jsonl"
    filled = from_recipe(base).to_dict()

    def same_keys(recipe, config) -> bool:
        return recipe.keys() == config.keys() and all(
            same_keys(recipe[key], value) for key, value in config.items() if isinstance(value, dict)
        )

    assert same_keys(base.to_dict(), filled)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no recipe: say --config configs/pretrain.py"),
        (["--config"], "does not exist"),
        (["--config=configs/nope.py"], "recipe configs/nope.py does not exist"),
        (["--config", "configs"], "recipe configs does not exist"),
        ([f"--config={PRETRAIN}:huge"], "recipe argument 'huge' is not one of tiny, "),
        ([f"--config={PRETRAIN}", "--config.model.n_layer=4"], "model.n_layer: did you mean model.n_layers?"),
        ([f"--config={PRETRAIN}", "--config.bach_size=4"], "unknown config key bach_size: did you mean batch_size?"),
        ([f"--config={PRETRAIN}", "--config.model.dim.x=4"], "unknown config key model.dim.x"),
        ([f"--config={PRETRAIN}", "--config.zzz=4"], "unknown config key zzz: the keys are listed in docs/config.md"),
        ([f"--config={PRETRAIN}", "--config.steps=ten"], "--config.steps=ten"),
        ([f"--config={PRETRAIN}", "--config.steps=1.5"], "--config.steps=1.5"),
        ([f"--config={PRETRAIN}", "--config.optim.lr=fast"], "--config.optim.lr=fast"),
        ([f"--config={PRETRAIN}", "--config.deterministic=maybe"], "--config.deterministic=maybe"),
        ([f"--config={PRETRAIN}", "--config.model=5"], "--config.model=5"),
        ([f"--config={PRETRAIN}", "--config.workdir"], "--config.workdir"),
        ([f"--config={PRETRAIN}", "--epochs=2"], "unknown flag --epochs: recipe keys are overridden as --config.KEY="),
        ([f"--config={PRETRAIN}", "extra"], "unexpected argument 'extra'"),
    ],
)
def test_a_wrong_command_line_gets_one_sentence(arguments: list[str], words: str):
    assert words in error(*arguments)


def test_the_recipe_is_locked_against_new_keys(tmp_path: Path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from minimind_jax.recipe import base_recipe\n"
        "def get_config(arg=''):\n    c = base_recipe('pretrain')\n    c.model.layers = 3\n    return c\n"
    )
    with pytest.raises(UserError, match=r"unknown config key model\.layers"):
        from_recipe(load(f"--config={recipe}")[0])


def run_train(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "train.py", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config=configs/nope.py"],
        ["--config=configs/pretrain.py", "--config.model.n_layer=4"],
        ["--config=configs/pretrain.py", "--config.steps=ten"],
    ],
)
def test_the_command_prints_one_error_line(arguments: list[str]):
    done = run_train(*arguments)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")


def test_help_names_the_documentation():
    done = run_train("--help")
    assert done.returncode == 0 and "--config configs/pretrain.py" in done.stdout and "docs/config.md" in done.stdout
