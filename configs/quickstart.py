"""`make quickstart`, first stage: learn simple Chinese and English in about four minutes on two CPU cores.

    python train.py --config configs/quickstart.py

Trains on text that the project generates itself (`python -m minimind_jax.data.generate`), with a
tokenizer of 2,048 entries trained on it. See README.md for what it prints.
"""

from minimind_jax.recipe import apply_argument, base_recipe


def get_config(arg: str = ""):
    c = base_recipe("pretrain")
    c.workdir = "out/quickstart/pretrain"
    c.tokenizer = "out/quickstart/tokenizer"
    c.steps = 1500
    c.batch_size = 8  # small steps: at this size they learn more from the same tokens

    c.scan_unroll = 4  # all layers: 7 % faster where docs/log.md measured it

    # Heads of 32: a size that serving engines know.
    c.model.update(dict(dim=160, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, vocab_size=2048))
    c.model.max_seq_len, c.model.rope_theta = 2048, 1e4

    c.data.path = "out/quickstart/data/pretrain.jsonl"
    c.data.val_path = "out/quickstart/data/pretrain_val.jsonl"
    c.data.max_seq_len = 128

    c.optim.lr = 3e-3
    c.optim.warmup_steps = 100
    c.optim.min_lr_ratio = 0.05

    c.log_every = 20
    c.eval_every = 500
    c.save_every = 500
    c.sample_prompts = (
        "有一天，小明",
        "十二月的下一个月",
        "One day Tom",
        "The opposite of",
    )
    return apply_argument(c, arg, smoke)


def smoke(c) -> None:
    """Half a minute: does the chain hold?"""
    c.workdir = "out/smoke/quickstart"
    c.steps, c.optim.warmup_steps, c.eval_every, c.save_every = 20, 5, 10, 10
    c.model.update(dict(dim=64, n_layers=2, head_dim=0, ffn_dim=0))
