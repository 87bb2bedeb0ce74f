"""`make quickstart`, second stage: learn to answer, from generated conversations.

    python train.py --config configs/quickstart_sft.py

Starts from `out/quickstart/pretrain`; about three minutes on two CPU cores.
"""

from minimind_jax.recipe import apply_argument, base_recipe


def get_config(arg: str = ""):
    c = base_recipe("sft")
    c.workdir = "out/quickstart/sft"
    c.init_from = "out/quickstart/pretrain"
    c.epochs = 2.0
    c.batch_size = 8
    c.scan_unroll = 4

    c.data.path = "out/quickstart/data/sft.jsonl"
    c.data.val_path = "out/quickstart/data/sft_val.jsonl"
    c.data.max_seq_len = 128

    c.optim.lr = 1e-3
    c.optim.warmup_steps = 50
    c.optim.min_lr_ratio = 0.05

    c.log_every = 20
    c.eval_every = 400
    c.save_every = 400
    c.sample_prompts = ("春游在星期三。第二天是星期几？", "What is the opposite of big?")
    return apply_argument(c, arg, smoke)


def smoke(c) -> None:
    """Half a minute: does the chain hold?"""
    c.workdir = "out/smoke/quickstart_sft"
    c.model.update(dict(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=0, ffn_dim=0))
    c.epochs, c.steps, c.optim.warmup_steps, c.eval_every, c.save_every = 0.0, 20, 5, 10, 10
