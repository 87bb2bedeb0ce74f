"""Supervised fine-tuning, first pass: conversations of up to 512 tokens.

    python train.py --config configs/sft_512.py

MiniMind publishes one file for all lengths (14 GB; `sft_t2t_mini.jsonl` has 1.6 GB):

    hf download --repo-type dataset jingyaogong/minimind_dataset sft_t2t.jsonl --local-dir dataset

This pass takes what fits into 512 tokens: whole conversations, and of a longer one the turns up to the last answer
that fits (`data.truncate=turn`; `drop` leaves longer ones to the next pass altogether). How many are cut or dropped
stands on stderr. A file of MiniMind's earlier releases, which had been cut to this length, is used the same way:
`--config.data.path=dataset/sft_512.jsonl`.

The 8-GPU recipe: from `out/pretrain`, 2 epochs, rows of 512 tokens into which whole conversations are
packed (a row holds about three). Each step sees 128 rows = 65,536 tokens: 16 rows a GPU x 8 GPUs x
accum_steps 1. Loss on the assistants' turns only; docs/chat.md says exactly on which tokens.

Cost and result: not measured on 8 GPUs. docs/log.md has the run of `configs/sft_512.py:tiny` on a CPU.

`:smoke` starts from nothing and takes a minute on a CPU: do all parts work?
"""

from minimind_jax.recipe import MODEL_PRESETS, apply_argument, base_recipe


def get_config(arg: str = ""):
    c = base_recipe("sft")
    c.workdir = "out/sft_512"
    c.init_from = "out/pretrain"
    c.epochs = 2.0
    c.batch_size = 128
    c.accum_steps = 1
    c.remat = "dots"

    c.model.update(MODEL_PRESETS["minimind_1024"])  # only where init_from is empty: else its own

    c.data.path = "dataset/sft_t2t.jsonl"
    c.data.val_fraction = 0.002
    c.data.max_seq_len = 512

    c.optim.lr = 1e-5
    c.optim.warmup_steps = 100

    c.log_every = 10
    c.eval_every = 1000
    c.save_every = 500
    c.sample_prompts = ("中国的首都是哪里？", "为什么天空是蓝色的？", "Who are you?", "Name three primary colors.")
    return apply_argument(c, arg, smoke, for_cpu)


def for_cpu(c) -> None:
    """What goes with the tiny model: small steps that two CPU cores take a second for, and a rate for its size."""
    c.workdir, c.init_from = "out/tiny/sft_512", "out/tiny/pretrain"
    c.batch_size, c.accum_steps, c.remat = 8, 1, "none"
    c.scan_unroll = 4
    c.optim.lr, c.optim.warmup_steps = 1e-3, 50
    c.data.val_fraction = 0.02
    c.log_every, c.eval_every, c.save_every = 4, 200, 100


def smoke(c) -> None:
    """A minute on a CPU, to see that data, model and loop work together."""
    c.workdir, c.init_from = "out/smoke/sft_512", ""
    c.epochs, c.steps, c.batch_size, c.accum_steps = 0.0, 20, 8, 2
    c.model.update(dict(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=0, ffn_dim=0))
    c.data.max_seq_len = 256
    c.optim.warmup_steps = 5
    c.log_every, c.eval_every, c.save_every = 1, 10, 10
    c.sample_prompts = ("你好", "Hello")
