"""The README.md of an exported model: what it is, how it was trained, how to load it.

The block of YAML at its top is what the Hugging Face hub reads. A licence is the user's to state.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind_jax.errors import UserError
from minimind_jax.long_context import trained_length
from minimind_jax.model import count_params
from minimind_jax.workdir import LoadedModel, Workdir, is_workdir, lineage, read_metrics

_STAGES = {"pretrain": "pretraining", "sft": "supervised fine-tuning on conversations", "dpo": "preference training"}

_FRONT_MATTER = """---
language:
- zh
- en
library_name: transformers
pipeline_tag: text-generation
---
"""

_CHAT = """messages = [{"role": "user", "content": "你好"}]
text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids"""

_CONTINUE = (
    """ids = tokenizer(tokenizer.bos_token + "中国的首都是", add_special_tokens=False, return_tensors="pt").input_ids"""
)

_USE = """
## How to use it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
{prompt}
print(tokenizer.decode(model.generate(ids, max_new_tokens=100)[0, ids.shape[1]:], skip_special_tokens=True))
```

The class is a standard one: vLLM, SGLang and others load the directory without remote code.
"""

_LICENCE = """
## Licence

Not stated yet. Weights carry the terms of the data (and of the model) that they were trained from: name a licence
here and as `license:` in the block at the top.
"""


@dataclass(frozen=True)
class _Stage:
    """One run of those that made the model."""

    config: Mapping[str, Any]
    step: int
    metrics: list[dict[str, Any]]  # up to `step`


def write_model_card(directory: Path, model: LoadedModel, name: str, architecture: str, dtype: str) -> None:
    """Writes README.md: a Hugging Face directory's own, or one made from the workdir's config and metrics.

    Args:
      name: of the exported directory.
      architecture: transformers' class.
      dtype: of the exported weights.
    """
    if (own := model.path / "README.md").is_file() and not is_workdir(model.path):
        shutil.copyfile(own, directory / "README.md")
        return
    stages = list(_stages(model))
    sections = [_FRONT_MATTER, f"\n# {name}\n\n", _table(_architecture_rows(model, architecture, dtype))]
    for stage in stages:
        title = _STAGES[stage.config["stage"]]
        sections += [f"\n## {title[0].upper()}{title[1:]}\n\n", _table(_stage_rows(stage))]
    chats = _has_template(model) and not (stages and stages[0].config["stage"] == "pretrain")
    sections += [_USE.format(name=name, prompt=_CHAT if chats else _CONTINUE), _LICENCE]
    (directory / "README.md").write_text("".join(sections), encoding="utf-8")


def _stages(model: LoadedModel) -> Iterator[_Stage]:
    """The runs that made the model, the last one first, as far back as their workdirs are there."""
    try:
        for path, config in lineage(model.path):
            workdir = Workdir(path)
            step = model.step if path == model.path else max(workdir.steps(), default=0)
            metrics = [line for line in read_metrics(workdir) if line["step"] <= step]
            if config.get("stage") not in _STAGES:  # imported
                return
            yield _Stage(config, step, metrics)
    except UserError:  # a card is no reason to fail
        return


def _architecture_rows(model: LoadedModel, architecture: str, dtype: str) -> Iterator[tuple[str, object]]:
    c = model.config
    yield "class", f"`{architecture}`"
    yield "parameters", f"{count_params(c):,}"
    yield "layers x width", f"{c.n_layers} x {c.dim}, feed-forward {c.ffn_dim}"
    yield "heads", f"{c.n_heads} for queries, {c.n_kv_heads} for keys and values, {c.head_dim} wide"
    yield "vocabulary", f"{c.vocab_size:,}"
    scaling = c.rope_scaling
    yarn = f", YaRN: {scaling.factor:g} times {scaling.original_max_seq_len:,}" if scaling.type == "yarn" else ""
    yield "positions", f"{c.max_seq_len:,}{yarn}"
    if trained := trained_length(model.path):
        yield "longest rows in training", f"{trained:,} tokens"
    yield "weights", dtype


def _stage_rows(stage: _Stage) -> Iterator[tuple[str, object]]:
    config, data, optim = stage.config, stage.config["data"], stage.config["optim"]
    if config.get("init_from"):
        yield "started from", Path(config["init_from"]).name
    for what, key in (("data", "path"), ("validation data", "val_path")):
        if files := [Path(entry).name for entry in data[key].split(",") if entry]:
            yield what, ", ".join(files)
    if data["val_fraction"]:
        yield "validation data", f"{data['val_fraction']:g} of the documents, held out"
    yield "steps", f"{stage.step:,} of {config.get('total_steps', stage.step):,}"
    row = data["max_seq_len"] * (2 if config["stage"] == "dpo" else 1)  # a row of pairs is twice as long
    yield "batch", f"{config['batch_size']} rows of {row:,} tokens"
    if counts := [line["target_tokens"] for line in stage.metrics if line.get("target_tokens") is not None]:
        yield (
            "tokens",
            f"about {sum(counts) / len(counts) * stage.step:,.0f} with a loss (a logged step's mean x steps)",
        )
    yield "optimiser", f"{optim['name']}, learning rate {optim['lr']:g}, {optim['schedule']}"
    yield "seed", config["seed"]
    for prefix, what in (("", "training loss"), ("val_", "validation")):
        lines = [line for line in stage.metrics if line.get(f"{prefix}loss") is not None]
        if lines:
            keys = [key for key in lines[-1] if prefix and key.startswith(prefix)] or ["loss"]
            shown = ", ".join(f"{key.removeprefix(prefix)} {lines[-1][key]:.4g}" for key in keys)
            yield f"{what}, step {lines[-1]['step']:,}", shown.removeprefix("loss ") if not prefix else shown


def _table(rows: Iterator[tuple[str, object]]) -> str:
    return "| | |\n|---|---|\n" + "".join(f"| {key} | {value} |\n" for key, value in rows)


def _has_template(model: LoadedModel) -> bool:
    try:
        return bool(model.tokenizer.apply_chat_template([{"role": "user", "content": "你好"}]))
    except UserError:
        return False
