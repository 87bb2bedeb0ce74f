"""Direct preference optimisation: from pairs of a better and a worse answer.

    python train.py --config configs/dpo.py

The pairs that MiniMind publishes (53 MB):

    hf download --repo-type dataset jingyaogong/minimind_dataset dpo.jsonl --local-dir dataset

The 8-GPU recipe: from `out/sft_2048`, 2 epochs, up to 2,048 tokens a side; a row holds 4,096 tokens of
whole pairs. Each step sees 32 rows, about 130 pairs of a thousand tokens: 4 rows a GPU x 8 GPUs x
accum_steps 1. The reference (`init_from`) is scored once, before the first step.

The closing summary compares before and after on held-out pairs. Reward accuracy should rise above
0.5; if sampled answers get longer, repeat themselves or the SFT loss on chosen answers rises, the
rate is too high or `dpo.sft_weight` too low. `beta`, `sft_weight` and the rate of `:tiny` come from the sweep
in docs/log.md; the rate here is a usual one for larger models (5e-7), not swept.

Cost and result: not measured on 8 GPUs. docs/log.md has the run of `configs/dpo.py:tiny` on a CPU.
"""

from minimind_jax.recipe import MODEL_PRESETS, apply_argument, base_recipe


def get_config(arg: str = ""):
    c = base_recipe("dpo")
    c.workdir = "out/dpo"
    c.init_from = "out/sft_2048"
    c.epochs = 2.0
    c.batch_size = 32
    c.accum_steps = 1
    c.remat = "dots"

    c.model.update(MODEL_PRESETS["minimind_1024"])  # a placeholder: the model is init_from's

    c.data.path = "dataset/dpo.jsonl"
    c.data.val_fraction = 0.02
    c.data.max_seq_len = 2048
    c.data.truncate = "cut"

    c.dpo.loss = "sigmoid"
    c.dpo.beta = 0.1
    c.dpo.sft_weight = 1.0

    c.optim.lr = 5e-7
    c.optim.warmup_steps = 50
    c.optim.weight_decay = 0.0

    c.log_every = 10
    c.eval_every = 200
    c.save_every = 200
    c.sample_prompts = ("请介绍一下你自己。", "怎样学好一门外语？", "Who are you?", "How do I cook rice?")
    return apply_argument(c, arg, smoke, for_cpu)


def for_cpu(c) -> None:
    """What goes with the tiny model on two CPU cores."""
    c.workdir, c.init_from = "out/tiny/dpo", "out/tiny/sft_2048"
    c.batch_size, c.accum_steps, c.remat = 4, 1, "none"
    c.scan_unroll = 4
    c.data.max_seq_len = 512
    c.optim.lr, c.optim.warmup_steps = 1e-5, 5
    c.data.val_fraction = 0.1
    c.log_every, c.eval_every, c.save_every = 1, 50, 50


def smoke(c) -> None:
    """A minute on a CPU, to see that data, model and loop work together. Needs a model: `init_from`."""
    c.workdir, c.init_from = "out/smoke/dpo", "out/smoke/sft_512"
    c.model.update(dict(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=0, ffn_dim=0))
    c.epochs, c.steps, c.batch_size, c.accum_steps = 0.0, 10, 4, 2
    c.data.max_seq_len = 256
    c.optim.warmup_steps = 2
    c.log_every, c.eval_every, c.save_every = 1, 5, 5
    c.sample_prompts = ("你好", "Hello")
