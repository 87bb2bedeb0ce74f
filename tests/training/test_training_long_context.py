"""Training on with YaRN: the longer rows, what the workdir records, the warning, and the model in transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import training_helpers as th

from convert.to_hf import export
from minimind_jax.config import RopeScaling
from minimind_jax.inference import Options, generate
from minimind_jax.long_context import trained_length
from minimind_jax.workdir import load_model

ORIGINAL, LONG = th.SEQ_LEN, 4 * th.SEQ_LEN


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents that are longer than the rows of the first run."""
    file = th.write_corpus(tmp_path_factory.mktemp("data") / "corpus.jsonl", 240)
    texts = [json.loads(line)["text"] for line in file.read_text("utf-8").splitlines()]
    joined = ("\n".join(texts[i : i + 12]) for i in range(0, len(texts), 12))
    file.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in joined), "utf-8")
    return file


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A workdir that was trained at the original length."""
    workdir = tmp_path_factory.mktemp("short") / "run"
    th.run_here(*th.overrides(workdir, corpus, steps=3))
    return workdir


def yarn(original: int = ORIGINAL) -> list[str]:
    values = {"type": "yarn", "factor": 4.0, "original_max_seq_len": original}
    return [f"--config.model.rope_scaling.{key}={value}" for key, value in values.items()]


def longer(workdir: Path, corpus: Path, source: Path, **changes) -> list[str]:
    values = {"init_from": source, "data__max_seq_len": LONG, "steps": 2, "save_every": 1, "optim__lr": 1e-3}
    return th.overrides(workdir, corpus, **(values | changes))


@pytest.mark.slow
def test_a_stretched_run_records_its_length_and_equals_transformers_beyond_the_original(
    corpus: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source, workdir, plain = tmp_path / "source", tmp_path / "run", tmp_path / "plain"
    shutil.copytree(short, source)
    assert trained_length(source) == ORIGINAL
    th.run_here(*longer(workdir, corpus, source), *yarn())
    th.run_here(*longer(plain, corpus, source, steps=1))
    assert "never trained" not in capsys.readouterr().out
    assert trained_length(workdir) == LONG
    model = load_model(workdir)
    assert model.config.rope_scaling == RopeScaling("yarn", 4.0, ORIGINAL)
    # The same weights on the same rows: YaRN alone makes the difference.
    assert th.losses(workdir)[0] != th.losses(plain)[0] and np.isfinite(th.losses(workdir)[1][1])

    shutil.rmtree(source)  # what was trained is known without it, also to a run that goes on
    th.run_here(*longer(workdir, corpus, source, steps=3), *yarn())
    assert trained_length(workdir) == LONG and load_model(workdir).step == 3

    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    noise = np.random.default_rng(0)  # or a model of a few steps says one token for ever
    for part in (model.params["blocks"]["attn"], model.params["blocks"]["mlp"], {"embed": model.params["embed"]}):
        for value in part.values():
            value += noise.normal(0, 0.3, value.shape)
    export(model, tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    prompt = [1, *model.tokenizer.encode(json.loads(corpus.read_text("utf-8").splitlines()[0])["text"])][:90]
    (ours,) = generate(model.config, model.params, [prompt], Options(max_new_tokens=LONG - 90), eos_id=-1)
    ids = torch.tensor([prompt])
    expected = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=LONG - 90, do_sample=False, eos_token_id=None
    )
    assert ours == expected[0, 90:].tolist() and len(set(ours)) > 5


@pytest.mark.parametrize("from_scratch", [False, True], ids=["init_from", "scratch"])
def test_an_original_length_that_was_never_trained_is_warned_of(
    from_scratch: bool, corpus: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    if from_scratch:
        arguments = th.overrides(tmp_path / "run", corpus, steps=1)
    else:
        arguments = longer(tmp_path / "run", corpus, short, steps=1)
    th.run_here(*arguments, *yarn(original=64))
    lines = [line for line in capsys.readouterr().out.splitlines() if "never trained" in line]
    assert lines == [
        "warning: rope_scaling.original_max_seq_len=64 was never trained, the longest rows were of 32 tokens: YaRN "
        "stretches a length that was; set it to 32, or train rows of 64 before"
    ]


@pytest.mark.slow
def test_what_began_from_an_unknown_model_stays_unknown(
    corpus: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    export(load_model(short), tmp_path / "hf")
    th.run_here(*longer(tmp_path / "run", corpus, tmp_path / "hf", steps=1), *yarn(original=2048))
    assert "never trained" not in capsys.readouterr().out
    assert trained_length(tmp_path / "run") is None
