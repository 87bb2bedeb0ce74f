"""Our preference losses against trl's own code: its DPOTrainer, and its experimental CPO and ORPO losses.

Where trl means something else by a name:
  sigmoid: DPOTrainer has no label smoothing any more; CPOTrainer's sigmoid loss has.
  rewards/*: DPOTrainer takes them from summed log-probabilities also for ipo, whose loss is on means; ours are always
    of what the loss takes. Ties count as wrong there, as half here.
  dpo.logp=mean: no counterpart.
  orpo: trl's likelihood term is over prompt and answer, ours (the SFT term) over the answer only, so only the odds
    ratio is compared.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from preference_helpers import Network, Side, forward_of, pack, total

import minimind_jax.tokenizer
from minimind_jax import hf_format
from minimind_jax.config import DpoConfig, ModelConfig
from minimind_jax.objectives import pair_losses

trl = pytest.importorskip("trl")
import datasets  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # says that trl.experimental may change
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # trl and transformers about each other

TEXTS = [
    ("How many legs has a spider?", " Eight.", " A spider has six legs, I think."),
    ("3 + 4 =", " 7", " 8"),
    ("你好", "，请问有什么可以帮您？", "。"),
    ("Say nothing.", " ", " Certainly! Here is a long list of things."),
    ("Name a colour.", " Blue.", " Blue and green."),
]


def random_llama(seed: int) -> torch.nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=6400,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


class Setup(NamedTuple):
    trainer: Any  # a real DPOTrainer
    inputs: dict[str, torch.Tensor]  # all pairs, as its collator makes them; without reference
    network: Network  # the same weights
    config: ModelConfig
    batch: dict[str, np.ndarray]  # the same pairs, packed, with trl's reference log-probabilities


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    directory = tmp_path_factory.mktemp("trl")
    model, reference = random_llama(0), random_llama(0)
    with torch.no_grad():
        for p in reference.parameters():
            p.add_(0.03 * torch.randn_like(p))
    model.save_pretrained(directory)
    config = hf_format.read_config(directory)
    network = Network(forward_of(config), hf_format.read_params(directory, config))

    tokenizer = transformers.AutoTokenizer.from_pretrained(Path(minimind_jax.tokenizer.__file__).parent / "minimind")
    pairs = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in TEXTS]
    trainer = trl.DPOTrainer(
        model=model,
        ref_model=reference,
        args=trl.DPOConfig(
            output_dir=str(directory), use_cpu=True, report_to="none", bf16=False, gradient_checkpointing=False
        ),
        train_dataset=datasets.Dataset.from_list(pairs),
        processing_class=tokenizer,
    )
    examples = list(trainer.train_dataset)
    inputs = trainer.data_collator(examples)
    ref_logps = torch.stack(trainer.compute_ref_log_probs(trainer.ref_model, inputs), dim=-1).numpy()

    sides = [
        tuple(
            Side(np.array(e["prompt_ids"] + e[f"{side}_ids"]), len(e["prompt_ids"])) for side in ("chosen", "rejected")
        )
        for e in examples
    ]
    batch = pack([sides[:3], sides[3:]], T=128, P=3, ref_logps=[ref_logps[:3], ref_logps[3:]])
    return Setup(trainer, inputs, network, config, batch | {"ref_logps": batch["ref_logps"].astype(np.float32)})


def compare(config: DpoConfig, setup: Setup, loss: torch.Tensor) -> dict[str, float]:
    """Value and all gradients of trl's loss against ours; returns our metrics."""
    model = setup.trainer.model
    model.zero_grad()
    loss.backward()
    value, metrics, grads = total(config, setup.network, setup.batch)
    assert value == pytest.approx(loss.item(), rel=1e-5)
    theirs = {name: p.grad.numpy() for name, p in model.named_parameters()}
    ours = hf_format.to_hf_tensors(grads, setup.config)
    assert ours.keys() == theirs.keys()
    for name, grad in ours.items():
        assert np.abs(grad - theirs[name]).max() <= 1e-4 * np.abs(theirs[name]).max(), name
    return metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "loss_types"),
    [
        (DpoConfig(loss="sigmoid"), {"sigmoid": 1.0}),
        (DpoConfig(loss="sigmoid", sft_weight=0.3), {"sigmoid": 1.0, "sft": 0.3}),
        (DpoConfig(loss="ipo", beta=0.4), {"ipo": 1.0}),
        (DpoConfig(loss="hinge", beta=0.7), {"hinge": 1.0}),
        (DpoConfig(loss="robust", label_smoothing=0.2), {"robust": 1.0}),
        (DpoConfig(loss="apo_zero", beta=0.3), {"apo_zero": 1.0}),
    ],
    ids=lambda x: "+".join(x) if isinstance(x, dict) else "",
)
def test_the_objective_equals_dpo_trainer(config: DpoConfig, loss_types: dict[str, float], setup: Setup):
    """Loss, gradients of all weights and metrics, from padded rows there and from packed ones here."""
    trainer = setup.trainer
    trainer.beta, trainer.label_smoothing = config.beta, config.label_smoothing
    trainer.loss_types, trainer.loss_weights = list(loss_types), list(loss_types.values())
    trainer._metrics["train"].clear()
    trainer.model.train()
    metrics = compare(config, setup, trainer._compute_loss(trainer.model, setup.inputs, return_outputs=False))
    compared = {
        name for name in metrics if name.startswith("logps/" if config.loss == "ipo" else ("logps/", "rewards/"))
    }
    assert len(compared) == (2 if config.loss == "ipo" else 6)
    for name in compared:
        assert metrics[name] == pytest.approx(trainer._metrics["train"][name][0], rel=1e-4, abs=1e-5), name


def stub(**attributes: Any) -> SimpleNamespace:
    """What the methods of trl below read of a trainer."""
    return SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), alpha=0.0, **attributes)


def trl_losses(config: DpoConfig, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Of CPOTrainer or ORPOTrainer, from log-probabilities of the answers; minimised like ours."""
    if config.loss == "orpo":
        return -ORPOTrainer.odds_ratio_loss(stub(beta=config.beta), chosen, rejected)[0]
    settings = stub(
        loss_type=config.loss, beta=config.beta, simpo_gamma=config.margin, label_smoothing=config.label_smoothing
    )
    return CPOTrainer.cpo_loss(settings, chosen, rejected)[0]


@pytest.mark.parametrize(
    "config",
    [
        DpoConfig(loss="simpo", beta=2.0, margin=1.6),
        DpoConfig(loss="simpo", beta=2.0, margin=0.5, label_smoothing=0.1),
        DpoConfig(loss="orpo", beta=0.3, sft_weight=1.0),
        # CPO has no reference: conservative DPO is its sigmoid loss of log-ratios.
        DpoConfig(loss="sigmoid", beta=0.5, label_smoothing=0.1),
        DpoConfig(loss="sigmoid", beta=0.5),
    ],
    ids=lambda config: f"{config.loss}-{config.label_smoothing}",
)
def test_pair_losses_equal_cpo_and_orpo_trainer(config: DpoConfig):
    """On the same log-probabilities, values and gradients."""
    logps = np.random.default_rng(0).uniform(-9, -0.01, (2, 200)).astype(np.float32)
    theirs = [torch.tensor(x, requires_grad=True) for x in logps]
    losses = trl_losses(config, *theirs)
    losses.sum().backward()
    np.testing.assert_allclose(pair_losses(config, *map(jnp.asarray, logps)), losses.detach(), rtol=1e-5, atol=1e-6)
    ours = jax.grad(lambda c, r: jnp.sum(pair_losses(config, c, r)), (0, 1))(*logps)
    for grad, tensor in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(grad, tensor.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_the_reference_free_objectives_equal_cpo_and_orpo_trainer(loss: str, setup: Setup):
    """From the weights on, by trl's mean log-probabilities."""
    # Without the likelihood term, which trl takes over prompt and answer.
    config = DpoConfig(loss="simpo", beta=2.0) if loss == "simpo" else DpoConfig(loss="orpo", sft_weight=1e-30)
    trainer = {"simpo": CPOTrainer, "orpo": ORPOTrainer}[loss]
    ids, mask = setup.inputs["input_ids"], setup.inputs["completion_mask"]
    model_logits = setup.trainer.model(input_ids=ids, attention_mask=setup.inputs["attention_mask"]).logits
    logps = trainer.get_batch_logps(model_logits, ids.masked_fill(mask == 0, -100), average_log_prob=True)
    compare(config, setup, trl_losses(config, *logps.chunk(2)).mean())
