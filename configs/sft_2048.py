"""Supervised fine-tuning, second pass: long conversations of up to 2,048 tokens.

    python train.py --config configs/sft_2048.py

Reads the same file as configs/sft_512.py, `dataset/sft_t2t.jsonl`, now with room for nearly all of every conversation:
the short ones again, so that they are not forgotten, and the long ones whole. A file of MiniMind's earlier releases,
which has long ones only, is used the same way: `--config.data.path=dataset/sft_2048.jsonl`.

The 8-GPU recipe: from `out/sft_512`, 2 epochs, rows of 2,048 tokens. Each step sees 64 rows = 131,072
tokens: 8 rows a GPU x 8 GPUs x accum_steps 1. Otherwise as configs/sft_512.py.

Cost and result: not measured on 8 GPUs. docs/log.md has the run of `configs/sft_2048.py:tiny` on a CPU.
"""

from minimind_jax.recipe import MODEL_PRESETS, apply_argument, base_recipe


def get_config(arg: str = ""):
    c = base_recipe("sft")
    c.workdir = "out/sft_2048"
    c.init_from = "out/sft_512"
    c.epochs = 2.0
    c.batch_size = 64
    c.accum_steps = 1
    c.remat = "dots"

    c.model.update(MODEL_PRESETS["minimind_1024"])  # only where init_from is empty: else its own

    c.data.path = "dataset/sft_t2t.jsonl"
    c.data.val_fraction = 0.002
    c.data.max_seq_len = 2048

    c.optim.lr = 1e-5
    c.optim.warmup_steps = 100

    c.log_every = 10
    c.eval_every = 500
    c.save_every = 250
    c.sample_prompts = ("请介绍一下你自己。", "怎样学好一门外语？", "Who are you?", "How do I cook rice?")
    return apply_argument(c, arg, smoke, for_cpu)


def for_cpu(c) -> None:
    """What goes with the tiny model on two CPU cores."""
    c.workdir, c.init_from = "out/tiny/sft_2048", "out/tiny/sft_512"
    c.batch_size, c.accum_steps, c.remat = 2, 1, "none"
    c.scan_unroll = 4
    c.optim.lr, c.optim.warmup_steps = 5e-4, 20
    c.data.val_fraction = 0.05
    c.log_every, c.eval_every, c.save_every = 2, 100, 50


def smoke(c) -> None:
    """A minute on a CPU, to see that data, model and loop work together."""
    c.workdir, c.init_from = "out/smoke/sft_2048", ""
    c.epochs, c.steps, c.batch_size, c.accum_steps = 0.0, 10, 2, 2
    c.model.update(dict(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=0, ffn_dim=0))
    c.optim.warmup_steps = 5
    c.log_every, c.eval_every, c.save_every = 1, 5, 5
    c.sample_prompts = ("你好", "Hello")
