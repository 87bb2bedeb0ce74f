"""`make quickstart`, third stage: prefer right answers to plausible wrong ones.

    python train.py --config configs/quickstart_dpo.py

Starts from `out/quickstart/sft`; half a minute on two CPU cores.
"""

from minimind_jax.recipe import apply_argument, base_recipe


def get_config(arg: str = ""):
    c = base_recipe("dpo")
    c.workdir = "out/quickstart/dpo"
    c.init_from = "out/quickstart/sft"
    c.epochs = 1.0
    c.batch_size = 4
    c.scan_unroll = 4

    c.data.path = "out/quickstart/data/dpo.jsonl"
    c.data.val_path = "out/quickstart/data/dpo_val.jsonl"
    c.data.max_seq_len = 128

    c.dpo.beta = 0.1
    c.dpo.sft_weight = 1.0

    c.optim.lr = 1e-4
    c.optim.warmup_steps = 10
    c.optim.weight_decay = 0.0

    c.log_every = 10
    c.eval_every = 100
    c.save_every = 100
    c.sample_prompts = ("春游在星期三。第二天是星期几？", "What is the opposite of big?")
    return apply_argument(c, arg, smoke)


def smoke(c) -> None:
    """Half a minute: does the chain hold?"""
    c.workdir = "out/smoke/quickstart_dpo"
    c.model.update(dict(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=0, ffn_dim=0))
    c.epochs, c.steps, c.optim.warmup_steps, c.eval_every, c.save_every = 0.0, 10, 2, 5, 5
