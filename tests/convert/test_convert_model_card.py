"""The model card: what it says of a workdir, of its predecessors, and of a Hugging Face directory."""

import dataclasses
import json

import pytest
from convert_helpers import LLAMA, QWEN3, edit_json, random_model, random_params

from convert import to_hf
from minimind_jax.long_context import with_yarn
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.workdir import Workdir, load_model, save_imported

yaml = pytest.importorskip("yaml")  # transformers brings it


def make_run(path, stage, lines, init_from="", **data):
    """A workdir as a run of `stage` leaves it, with a checkpoint of step 0."""
    workdir = Workdir(path)
    save_imported(workdir, LLAMA, random_params(LLAMA), load_tokenizer(), "test")
    (workdir.checkpoints / "0").rename(workdir.checkpoints / "40")
    values = {
        "stage": stage,
        "model": LLAMA.to_dict(),
        "data": {"path": "/secret/place/a.jsonl:2,/secret/b/*.jsonl", "val_path": "", "val_fraction": 0.0} | data,
        "optim": {"name": "adamw", "lr": 5e-4, "schedule": "cosine"},
        "init_from": str(init_from),
        "identity": {"init_from": str(init_from)},
        "seed": 7,
        "batch_size": 16,
        "total_steps": 60,
    }
    values["data"]["max_seq_len"] = 128
    workdir.write_config(values)
    workdir.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


LINES = [
    {"step": 10, "loss": 3.0, "target_tokens": 100},
    {"step": 20, "loss": 2.5, "target_tokens": 200, "val_loss": 2.75, "val_bpb": 1.25},
    {"step": 40, "loss": 2.25, "target_tokens": 150},
    {"step": 50, "loss": 1.125, "target_tokens": 9000, "val_loss": 1.5},  # after the checkpoint
]


def card(model, out):
    to_hf.export(model, out, "bfloat16")
    return (out / "README.md").read_text("utf-8")


def section(text, title):
    """The rows of one table."""
    lines = text.split(f"\n## {title}\n\n| | |\n|---|---|\n")[1].split("\n\n")[0].splitlines()
    return dict(line.strip("| ").split(" | ") for line in lines if line)


def test_what_a_run_did_is_in_the_card(tmp_path):
    sft = make_run(tmp_path / "secret" / "sft", "sft", LINES, tmp_path / "gone" / "base", val_path="/secret/v.jsonl")
    text = card(load_model(sft), tmp_path / "my-model")
    assert text.startswith("---\n")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front == {"language": ["zh", "en"], "library_name": "transformers", "pipeline_tag": "text-generation"}
    assert "\n# my-model\n" in text and "| class | `LlamaForCausalLM` |" in text and "| weights | bfloat16 |" in text
    assert section(text, "Supervised fine-tuning on conversations") == {
        "started from": "base",
        "data": "a.jsonl:2, *.jsonl",
        "validation data": "v.jsonl",
        "steps": "40 of 60",
        "batch": "16 rows of 128 tokens",
        "tokens": "about 6,000 with a loss (a logged step's mean x steps)",
        "optimiser": "adamw, learning rate 0.0005, cosine",
        "seed": "7",
        "training loss, step 40": "2.25",
        "validation, step 20": "loss 2.75, bpb 1.25",
    }
    assert 'from_pretrained("my-model")' in text and "apply_chat_template" in text
    assert "## Licence\n\nNot stated yet." in text
    assert "secret" not in text and str(tmp_path) not in text


def test_the_runs_before_are_in_the_card_as_far_as_they_are_there(tmp_path):
    make_run(tmp_path / "base", "pretrain", LINES[:1], val_fraction=0.01)
    make_run(tmp_path / "sft", "sft", LINES, tmp_path / "base")
    text = card(load_model(make_run(tmp_path / "dpo", "dpo", [], tmp_path / "sft")), tmp_path / "out")
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    stages = ["## Preference training", "## Supervised fine-tuning on conversations", "## Pretraining"]
    assert titles == [*stages, "## How to use it", "## Licence"]
    assert "tokens" not in section(text, "Preference training")  # nothing was logged
    assert section(text, "Pretraining")["validation data"] == "0.01 of the documents, held out"
    edit_json(tmp_path / "base" / "config.json", identity={"init_from": str(tmp_path / "dpo")})  # goes in circles
    assert card(load_model(tmp_path / "dpo"), tmp_path / "again").count("## Pretraining") == 1
    (tmp_path / "sft" / "metrics.jsonl").write_text("{\n")  # nothing to fail on
    assert "## Supervised" not in card(load_model(tmp_path / "dpo"), tmp_path / "third")


def test_the_card_tells_the_trained_length_from_the_limit_of_positions(tmp_path):
    make_run(tmp_path / "base", "pretrain", LINES)
    text = card(load_model(tmp_path / "base"), tmp_path / "plain")
    assert "| positions | 512 |\n| longest rows in training | 128 tokens |\n" in text
    text = card(with_yarn(load_model(tmp_path / "base"), 4.0), tmp_path / "yarn")
    assert "| positions | 512, YaRN: 4 times 128 |\n| longest rows in training | 128 tokens |\n" in text
    save_imported(Workdir(tmp_path / "w"), LLAMA, random_params(LLAMA), load_tokenizer(), "hf")
    assert "longest rows" not in card(load_model(tmp_path / "w"), tmp_path / "imported")


def test_a_pretrained_model_continues_texts(tmp_path):
    text = card(load_model(make_run(tmp_path / "base", "pretrain", LINES)), tmp_path / "out")
    assert "tokenizer.bos_token" in text and "apply_chat_template" not in text


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_the_code_in_the_card_runs(stage, tmp_path, monkeypatch, capsys):
    text = card(load_model(make_run(tmp_path / "w", stage, LINES)), tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    exec(text.split("```python\n")[1].split("```")[0].replace("max_new_tokens=100", "max_new_tokens=2"), {})
    assert capsys.readouterr().out


def test_an_imported_model_has_a_card_without_a_training_section(tmp_path):
    save_imported(Workdir(tmp_path / "w"), QWEN3, random_params(QWEN3), load_tokenizer(), "/secret/hf")
    text = card(load_model(tmp_path / "w"), tmp_path / "out")
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## How to use it", "## Licence"]
    assert "Qwen3ForCausalLM" in text and "secret" not in text


def test_a_card_that_a_model_has_goes_with_it(tmp_path):
    out = tmp_path / "out"
    to_hf.export(random_model(LLAMA), out)
    (out / "README.md").write_text("---\nlicense: apache-2.0\n---\nMine.\n")
    assert card(load_model(out), tmp_path / "copy") == "---\nlicense: apache-2.0\n---\nMine.\n"
    (out / "README.md").unlink()
    assert "Not stated yet" in card(dataclasses.replace(load_model(out)), tmp_path / "other")
