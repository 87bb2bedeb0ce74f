"""Imports run one way: the rooms of the package and which room may see which."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

ENTRY_POINTS = ("train", "evaluate", "serve", "chat")

# Room -> what it may import besides itself and the package's version. The longest matching name is a module's room.
ALLOWED = {
    "minimind_jax": set(),
    "minimind_jax.errors": set(),
    "minimind_jax.config_build": {"errors"},
    "minimind_jax.config": {"config_build", "errors"},
    "minimind_jax.recipe": {"config", "config_build", "errors"},
    "minimind_jax.model": {"config", "errors"},
    "minimind_jax.files": {"errors"},
    "minimind_jax.tokenizer": {"files", "errors"},
    "minimind_jax.chat": {"tokenizer", "errors"},
    "minimind_jax.data": {"chat", "config", "files", "tokenizer", "errors"},
    "minimind_jax.data.generate": {"errors"},
    "minimind_jax.data.__main__": {"data", "config", "recipe", "tokenizer", "workdir", "errors"},
    "minimind_jax.objectives": {"model", "config", "errors"},
    "minimind_jax.hf_format": {"model", "config", "errors"},
    "minimind_jax.checkpoint_files": {"errors"},
    "minimind_jax.workdir": {"checkpoint_files", "hf_format", "model", "tokenizer", "config", "errors"},
    "minimind_jax.long_context": {"workdir", "config", "errors"},
    "minimind_jax.inference": {"workdir", "model", "tokenizer", "config", "errors"},
    "minimind_jax.serving": {"chat", "inference", "workdir", "long_context", "tokenizer", "config", "errors"},
    # Scores texts as training does: jsonl reading and the loss are shared, not copied.
    "minimind_jax.evaluation": {
        "workdir", "model", "tokenizer", "config", "errors", "chat", "files", "data", "data.generate", "objectives",
        "inference",
    },
    "minimind_jax.training": {
        "objectives", "chat", "data", "model", "workdir", "checkpoint_files", "long_context", "tokenizer", "inference",
        "evaluation", "config", "errors",
    },
    "minimind_jax.plan": {
        "recipe", "training", "objectives", "data", "model", "workdir", "tokenizer", "config", "errors",
    },
    "convert": {"workdir", "long_context", "model", "hf_format", "tokenizer", "config", "errors"},
    "train": {"recipe", "training", "errors"},
    "evaluate": {"evaluation", "workdir", "long_context", "errors"},
    "serve": {"serving", "errors"},
    "chat": {"serving", "errors"},
}  # fmt: skip


def modules() -> list[Path]:
    return sorted(
        [*REPOSITORY.glob("minimind_jax/**/*.py"), *REPOSITORY.glob("convert/*.py"), *REPOSITORY.glob("*.py")]
    )


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    matching = [room for room in ALLOWED if f"{module}.".startswith(f"{room}.")]
    return max(matching, key=len)


def imported(source: str) -> Iterator[str]:
    """Dotted names of all imports of ours, wherever they stand: in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in ("minimind_jax", *ENTRY_POINTS, "convert"))


def forbidden(module: str, source: str) -> list[str]:
    room = room_of(module)
    allowed = {"minimind_jax", room} | {f"minimind_jax.{name}" for name in ALLOWED[room]}
    return [name for name in imported(source) if room_of(name) not in allowed]


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_a_module_imports_only_what_its_room_may(path: Path):
    assert forbidden(module_name(path), path.read_text("utf-8")) == []


def test_every_package_directory_is_a_room():
    rooms = {p.name for p in (REPOSITORY / "minimind_jax").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert {f"minimind_jax.{room}" for room in rooms} <= ALLOWED.keys()


def test_the_check_sees_every_form_of_import():
    assert forbidden("minimind_jax.model.x", "import minimind_jax.data.rows") == ["minimind_jax.data.rows"]
    assert forbidden("minimind_jax.model.x", "from minimind_jax import training") == ["minimind_jax.training"]
    assert forbidden("minimind_jax.data.x", "def f():\n  from minimind_jax.recipe import y") == [
        "minimind_jax.recipe.y"
    ]
    assert forbidden("minimind_jax.data.x", "from minimind_jax.data.generate import y") == [
        "minimind_jax.data.generate.y"
    ]
    assert forbidden("minimind_jax.data.x", "from minimind_jax.data.rows import y\nimport numpy") == []


def test_importing_the_package_loads_no_other_framework_and_opens_no_device():
    code = """
import sys
import minimind_jax.inference, minimind_jax.evaluation, minimind_jax.training, convert.to_hf, convert.from_hf
import convert.to_gguf, convert.to_torch, convert.from_torch, minimind_jax.serving
from jax._src import xla_bridge
heavy = {"torch", "transformers", "tensorflow", "matplotlib", "tensorboard", "wandb", "swanlab"} & sys.modules.keys()
print(sorted(heavy), xla_bridge.backends_are_initialized())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[] False"


def test_the_command_line_is_checked_before_jax_is_imported():
    code = "import sys, minimind_jax.recipe, minimind_jax.config; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
