"""The typed configuration: a recipe's ConfigDict is checked and converted once, here.

Nothing below `training.run` sees a ConfigDict. Every error names the key and says how to mend it.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minimind_jax.config_build import at_least, between, build, one_of, positive
from minimind_jax.errors import UserError

STAGES = ("pretrain", "sft", "dpo")
TRACKERS = ("tensorboard", "wandb", "swanlab")
# What `best` may name besides task/NAME, and whether more is better.
BEST_OF_VALIDATION = {
    "val_loss": False,
    "val_bpb": False,
    "val_rewards/accuracies": True,
    "val_rewards/margins": True,
}
_MAX_SEED = 2**31 - 1  # it goes into jitted code as an int32


@dataclass(frozen=True)
class RopeScaling:
    """RoPE scaling. `type` "yarn": Peng et al. 2023, arXiv:2309.00071, in transformers' form."""

    type: str = "none"  # none | yarn
    factor: float = 1.0  # context extension, >= 1
    original_max_seq_len: int = 0  # length the model was trained at; only for yarn


@dataclass(frozen=True)
class ModelConfig:
    """A dense pre-norm decoder: `qk_norm=True` is exactly Qwen3, `False` exactly Llama."""

    dim: int = 512
    n_layers: int = 8
    n_heads: int = 8
    n_kv_heads: int = 2
    head_dim: int = 0  # 0 = dim / n_heads
    ffn_dim: int = 0  # 0 = 64 * ceil(8 * dim / 3 / 64)
    vocab_size: int = 6400
    max_seq_len: int = 32768  # upper limit of positions; exported as max_position_embeddings
    rope_theta: float = 1e6
    norm_eps: float = 1e-5
    qk_norm: bool = False
    tie_embeddings: bool = True
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)

    def __post_init__(self) -> None:
        for key in ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len"):
            at_least(f"model.{key}", getattr(self, key), 1)
        for key in ("head_dim", "ffn_dim"):
            at_least(f"model.{key}", getattr(self, key), 0)
        positive("model.rope_theta", self.rope_theta)
        positive("model.norm_eps", self.norm_eps)
        if self.n_heads % self.n_kv_heads:
            raise UserError(
                f"model.n_heads={self.n_heads} is not a multiple of model.n_kv_heads={self.n_kv_heads}: "
                "each key/value head serves the same number of query heads"
            )
        if not self.head_dim:
            if self.dim % self.n_heads:
                raise UserError(
                    f"model.dim={self.dim} is not divisible by model.n_heads={self.n_heads}: "
                    "change one of them or set model.head_dim"
                )
            object.__setattr__(self, "head_dim", self.dim // self.n_heads)
        if self.head_dim % 2:
            raise UserError(f"model.head_dim={self.head_dim} is odd: RoPE rotates pairs, take an even one")
        if not self.ffn_dim:
            object.__setattr__(self, "ffn_dim", 64 * math.ceil(8 * self.dim / 3 / 64))
        one_of("model.rope_scaling.type", self.rope_scaling.type, ("none", "yarn"))
        at_least("model.rope_scaling.factor", self.rope_scaling.factor, 1.0)
        shortest = 1 if self.rope_scaling.type == "yarn" else 0
        at_least("model.rope_scaling.original_max_seq_len", self.rope_scaling.original_max_seq_len, shortest)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        return build(cls, values, "model")


@dataclass(frozen=True)
class DataConfig:
    path: str = ""  # comma-separated files or globs; "a.jsonl:2" is read twice an epoch
    val_path: str = ""  # held-out file(s); "" = val_fraction of path
    val_fraction: float = 0.0  # share of documents held out of path, chosen by content
    max_seq_len: int = 512  # row length in tokens
    num_workers: int = 0  # processes that tokenise; 0 = one per CPU core
    cache_dir: str = ""  # token stores; "" = ~/.cache/minimind_jax/tokens
    max_bad_share: float = 0.01  # share of unusable lines that is tolerated
    marks: str = "split"  # marks like <|im_start|> that pretraining texts spell out: split | encode | text
    truncate: str = "turn"  # conversations that are too long: turn | drop | cut; pretraining splits instead


@dataclass(frozen=True)
class SftConfig:
    """MiniMind's augmentations; which examples they hit is a function of (seed, epoch, example)."""

    system_prompt_prob: float = 0.0  # conversations without a system message that get a random one
    empty_think_drop_prob: float = 0.2  # conversations that lose the empty think block of their last answer

    def __post_init__(self) -> None:
        for key in ("system_prompt_prob", "empty_think_drop_prob"):
            between(f"sft.{key}", getattr(self, key), 0.0, 1.0)


PREFERENCE_LOSSES = ("sigmoid", "ipo", "hinge", "robust", "apo_zero", "simpo", "orpo")
REFERENCE_FREE = ("simpo", "orpo")


@dataclass(frozen=True)
class DpoConfig:
    """Formulas and papers: minimind_jax/objectives/preference.py."""

    loss: str = "sigmoid"  # sigmoid | ipo | hinge | robust | apo_zero | simpo | orpo
    beta: float = 0.1
    label_smoothing: float = 0.0  # share of pairs taken to be the wrong way round: sigmoid, robust, simpo
    margin: float = 0.5  # gamma of simpo, target difference of the rewards
    sft_weight: float = 0.0  # weight of the mean negative log-likelihood of the chosen answers' tokens
    logp: str = "sum"  # sum | mean over an answer's tokens; ipo, simpo and orpo are defined on the mean

    def __post_init__(self) -> None:
        one_of("dpo.loss", self.loss, PREFERENCE_LOSSES)
        one_of("dpo.logp", self.logp, ("sum", "mean"))
        positive("dpo.beta", self.beta)
        at_least("dpo.margin", self.margin, 0.0)
        at_least("dpo.sft_weight", self.sft_weight, 0.0)
        between("dpo.label_smoothing", self.label_smoothing, 0.0, 0.5)
        if self.label_smoothing == 0.5:
            raise UserError("dpo.label_smoothing=0.5 says that the pairs carry no information: take less")
        if self.label_smoothing and self.loss not in ("sigmoid", "robust", "simpo"):
            raise UserError(f"dpo.label_smoothing has no meaning for dpo.loss={self.loss}: set it to 0")
        if self.loss == "orpo" and not self.sft_weight:
            raise UserError(
                "dpo.loss=orpo is the likelihood of the chosen answers plus beta times the odds ratio: "
                "set dpo.sft_weight=1.0"
            )

    @property
    def needs_reference(self) -> bool:
        return self.loss not in REFERENCE_FREE


@dataclass(frozen=True)
class OptimConfig:
    name: str = "adamw"  # adamw | muon (for the blocks' matrices; AdamW for the rest)
    lr: float = 5e-4
    min_lr_ratio: float = 0.1  # lr at the end of the schedule, as a share of lr
    warmup_steps: int = 0
    schedule: str = "cosine"  # cosine | wsd | constant
    decay_ratio: float = 0.2  # share of the steps, the last ones, in which wsd lets lr fall
    weight_decay: float = 0.1  # on matrices only
    b1: float = 0.9  # Adam's; Muon's momentum is 0.95
    b2: float = 0.95
    grad_clip: float = 1.0  # global norm; 0 = off


@dataclass(frozen=True)
class PrecisionConfig:
    compute: str = "auto"  # auto | float32 | bfloat16; auto = bfloat16 on GPU/TPU, float32 on CPU
    params: str = "auto"  # auto | float32 | bfloat16; auto = float32 master weights

    @property
    def params_dtype(self) -> str:
        return "float32" if self.params == "auto" else self.params


@dataclass(frozen=True)
class MeshConfig:
    data: int = -1  # -1 = all remaining devices
    fsdp: int = 1


@dataclass(frozen=True)
class DistributedConfig:
    coordinator: str = ""  # host:port; "" = auto-detect (Slurm, ...) or a single process
    num_processes: int = 0
    process_id: int = -1


@dataclass(frozen=True)
class Config:
    """One run. Field meanings: docs/config.md."""

    stage: str
    workdir: str
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    seed: int = 0
    init_from: str = ""
    tokenizer: str = ""
    tokenizer_change: str = "refuse"  # refuse | resize: init_from with another vocabulary than it was trained with
    steps: int = 0
    epochs: float = 0.0
    batch_size: int = 32
    accum_steps: int = 1
    scan_unroll: int = 1
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    remat: str = "none"
    attention: str = "auto"
    deterministic: bool = False
    mesh: MeshConfig = field(default_factory=MeshConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    log_to: str = "tensorboard"  # comma-separated: tensorboard, wandb, swanlab; "" = none
    log_every: int = 1
    eval_every: int = 0
    save_every: int = 0
    keep: int = 2
    eval_tasks: str = ""  # comma-separated: NAME or NAME:PATH, as evaluate.py's --task
    eval_tasks_limit: int = 0  # items of each; 0 = all
    best: str = ""  # metric by which evaluations are compared; "" = val_loss, without held-out data the first task
    keep_best: bool = False
    sample_prompts: tuple[str, ...] = ()
    sft: SftConfig | None = None  # in the recipe of that stage only, like dpo
    dpo: DpoConfig | None = None

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in `log_to`, each once."""
        return tuple(dict.fromkeys(name.strip() for name in self.log_to.split(",") if name.strip()))

    @property
    def eval_task_specs(self) -> tuple[str, ...]:
        """The specs in `eval_tasks`, in their order."""
        return tuple(spec.strip() for spec in self.eval_tasks.split(",") if spec.strip())

    @property
    def eval_task_names(self) -> tuple[str, ...]:
        """The names of `eval_tasks`, without paths."""
        return tuple(spec.partition(":")[0] for spec in self.eval_task_specs)

    def to_dict(self) -> dict[str, Any]:
        """All keys that the stage's recipe has."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}

    def __post_init__(self) -> None:
        one_of("stage", self.stage, STAGES)
        for section in STAGES:
            if getattr(self, section, None) is not None and section != self.stage:
                raise UserError(f"section {section} belongs to stage {section}, not to stage {self.stage}: remove it")
        if self.stage == "dpo":
            if not self.init_from:
                raise UserError(
                    "stage dpo improves a model that can chat already: name it by --config.init_from=WORKDIR_OR_HF_DIR"
                )
            if self.dpo is None:
                raise UserError('a recipe of stage dpo needs a section dpo: make it by base_recipe("dpo")')
        one_of("tokenizer_change", self.tokenizer_change, ("refuse", "resize"))
        if self.tokenizer_change == "resize" and not self.init_from:
            raise UserError("tokenizer_change=resize is for the model of init_from, which is empty: leave it unset")
        if not self.workdir:
            raise UserError("workdir is empty: name the directory that the run shall write to")
        for key in ("batch_size", "accum_steps", "scan_unroll", "keep"):
            at_least(key, getattr(self, key), 1)
        for key in ("seed", "steps", "epochs", "log_every", "eval_every", "save_every", "eval_tasks_limit"):
            at_least(key, getattr(self, key), 0)
        if self.seed > _MAX_SEED:
            raise UserError(f"seed={self.seed} must be at most {_MAX_SEED}")
        if not self.steps and not self.epochs:
            raise UserError("steps and epochs are both 0: set one of them (steps > 0 wins over epochs)")
        if self.batch_size % self.accum_steps:
            raise UserError(
                f"batch_size={self.batch_size} is not divisible by accum_steps={self.accum_steps}: "
                "batch_size counts the rows of one step over all devices and accumulation steps"
            )
        one_of("remat", self.remat, ("none", "dots", "full"))
        one_of("attention", self.attention, ("auto", "xla", "triton", "cudnn"))
        for key in ("compute", "params"):
            value = getattr(self.precision, key)
            if value == "float16":
                raise UserError(
                    f"precision.{key}=float16 is not supported: its narrow exponent needs loss scaling and "
                    "loses small updates; bfloat16 has float32's range at the same speed, use that"
                )
            one_of(f"precision.{key}", value, ("auto", "float32", "bfloat16"))
        for tracker in self.trackers:
            one_of("log_to", tracker, TRACKERS)
        self._check_evaluation()
        self._check_data()
        self._check_optim()
        for key in ("data", "fsdp"):
            size = getattr(self.mesh, key)
            if size != -1 and size < 1:
                raise UserError(f"mesh.{key}={size} must be -1 (all remaining devices) or at least 1")
        if self.mesh.data == -1 and self.mesh.fsdp == -1:
            raise UserError("mesh.data and mesh.fsdp are both -1: only one of them can take all remaining devices")

    def _check_evaluation(self) -> None:
        for key in ("eval_tasks", "best", "keep_best"):
            if getattr(self, key) and not self.eval_every:
                raise UserError(f"{key} is set, but eval_every=0 never evaluates: set eval_every to a number of steps")
        names = self.eval_task_names
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"eval_tasks names {twice} twice: their scores would have one name")
        measured = (*BEST_OF_VALIDATION, *(f"task/{name}" for name in names))
        if self.best:
            one_of("best", self.best, measured)

    def _check_data(self) -> None:
        d = self.data
        if not d.path:
            raise UserError("data.path is empty: name one or more jsonl files, e.g. --config.data.path=a.jsonl")
        at_least("data.max_seq_len", d.max_seq_len, 2)
        if d.max_seq_len > self.model.max_seq_len:
            raise UserError(
                f"data.max_seq_len={d.max_seq_len} is longer than the model's limit "
                f"model.max_seq_len={self.model.max_seq_len}: shorten the rows or raise the limit"
            )
        at_least("data.num_workers", d.num_workers, 0)
        for key in ("val_fraction", "max_bad_share"):
            between(f"data.{key}", getattr(d, key), 0.0, 1.0)
        if d.val_fraction >= 1:
            raise UserError("data.val_fraction=1 leaves nothing to train on: take less than 1")
        if d.val_path and d.val_fraction:
            raise UserError("data.val_path and data.val_fraction are both set: hold out a file or a fraction, not both")
        one_of("data.truncate", d.truncate, ("turn", "drop", "cut"))
        one_of("data.marks", d.marks, ("split", "encode", "text"))

    def _check_optim(self) -> None:
        o = self.optim
        one_of("optim.name", o.name, ("adamw", "muon"))
        one_of("optim.schedule", o.schedule, ("cosine", "wsd", "constant"))
        if o.schedule == "wsd" and not o.decay_ratio:
            raise UserError("optim.decay_ratio=0 leaves wsd without its decay: set optim.schedule=constant, or a share")
        positive("optim.lr", o.lr)
        for key in ("min_lr_ratio", "decay_ratio"):
            between(f"optim.{key}", getattr(o, key), 0.0, 1.0)
        at_least("optim.warmup_steps", o.warmup_steps, 0)
        at_least("optim.weight_decay", o.weight_decay, 0.0)
        at_least("optim.grad_clip", o.grad_clip, 0.0)
        for key in ("b1", "b2"):
            between(f"optim.{key}", getattr(o, key), 0.0, 1.0)
            if getattr(o, key) == 1:
                raise UserError(f"optim.{key}=1 never updates Adam's moments: take less than 1")


def higher_is_better(metric: str) -> bool:
    """Which way a metric that `best` may name goes."""
    return BEST_OF_VALIDATION.get(metric, metric != "task/loss")


def cache_directory() -> Path:
    """Where token stores and compiled programs are kept: $XDG_CACHE_HOME/minimind_jax, else ~/.cache/minimind_jax."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minimind_jax"


def token_cache(cache_dir: str) -> Path:
    """The directory of `data.cache_dir`: token stores, packing plans, reference log-probabilities."""
    return Path(cache_dir).expanduser() if cache_dir else cache_directory() / "tokens"


def distributed_from_recipe(recipe: Mapping[str, Any]) -> DistributedConfig:
    """The section `distributed` alone: it is needed before anything else is looked at."""
    return build(DistributedConfig, recipe.get("distributed") or {}, "distributed")


def from_recipe(
    recipe: Mapping[str, Any],
    user_set: Collection[str] = (),
    inherited_model: ModelConfig | None = None,
) -> Config:
    """Checks and converts a recipe.

    Args:
      recipe: the ConfigDict that a recipe's `get_config` made, overrides applied.
      user_set: dotted keys that the user set by hand ("model.dim"); only matters with `init_from`.
      inherited_model: the architecture of `init_from`. Its values win over the recipe's; a key in
        `user_set` that contradicts it is an error.

    Raises:
      UserError: unknown key, wrong type, value out of range, contradiction with `init_from`.
    """
    values = {k: v for k, v in dict(recipe).items()}
    if inherited_model is not None:
        resize = values.get("tokenizer_change") == "resize"
        values["model"] = _merge_inherited(values.get("model", {}), user_set, inherited_model, resize)
    return build(Config, values, "")


def _merge_inherited(
    model: Mapping[str, Any], user_set: Collection[str], base: ModelConfig, resize: bool
) -> dict[str, Any]:
    def merge(recipe: Mapping[str, Any], inherited: dict[str, Any], prefix: str) -> None:
        for key, have in inherited.items():
            name, want = f"{prefix}.{key}", dict(recipe).get(key)
            if isinstance(have, dict):
                merge(want or {}, have, name)
            elif name in user_set and want is not None and want != have:
                # Stretching the context is what init_from is for: these do not touch a weight's shape.
                if key == "max_seq_len" or prefix == "model.rope_scaling" or key == "rope_theta":
                    inherited[key] = want
                elif key == "vocab_size" and resize:
                    inherited[key] = want or have
                elif not (key in ("head_dim", "ffn_dim") and want == 0):
                    way = ", or set --config.tokenizer_change=resize" if key == "vocab_size" else ""
                    raise UserError(f"{name}={want} contradicts init_from, whose model has {have}: leave it unset{way}")
        inherited |= {key: value for key, value in dict(recipe).items() if key not in inherited}  # `build` objects

    merged = base.to_dict()
    merge(model, merged, "model")
    return merged
