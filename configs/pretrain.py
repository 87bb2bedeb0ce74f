"""Pretraining: next-token prediction on raw text.

    python train.py --config configs/pretrain.py

The 8-GPU recipe: 1024 x 16 (183.8 M parameters), rows of 1024 tokens, 12 epochs over the pretraining file that
MiniMind publishes (10 GB; `pretrain_t2t_mini.jsonl` has 1.2 GB):

    hf download --repo-type dataset jingyaogong/minimind_dataset pretrain_t2t.jsonl --local-dir dataset

A file of MiniMind's earlier releases is used the same way, `--config.data.path=dataset/pretrain_hq.jsonl`: the marks
`<|im_start|>` and `<|im_end|>` that it spells out in its texts split these into documents (`data.marks`).

Each step sees 256 rows = 262,144 tokens: 16 rows a GPU and
accumulation step x 8 GPUs x accum_steps 2.

Cost and result: not measured yet. No run on 8 A100s was made with this version; the arithmetic is
6 x 183.8e6 + 12 x 16 x 1024 x 1024 = 1.3 GFLOP a token, so at 40 % of 8 x 312 TFLOP/s about
765,000 tokens/s. A run prints its own tokens/s, MFU and ETA from the first steps on.

Other sizes: `--config configs/pretrain.py:minimind2_small` (26 M), `:minimind2` (104 M),
`:minimind3` (64 M), and `:tiny` (256 x 4, 4.6 M, with batch, rows and lr for a CPU: docs/log.md has a
run). `:smoke` shrinks any of them to a minute on a CPU:

    python train.py --config configs/pretrain.py:smoke --config.data.path=my.jsonl
"""

from minimind_jax.recipe import MODEL_PRESETS, apply_argument, base_recipe


def get_config(arg: str = ""):
    c = base_recipe("pretrain")
    c.workdir = "out/pretrain"
    c.epochs = 12.0
    c.batch_size = 256
    c.accum_steps = 2
    c.remat = "dots"

    c.model.update(MODEL_PRESETS["minimind_1024"])

    c.data.path = "dataset/pretrain_t2t.jsonl"
    c.data.val_fraction = 0.002
    c.data.max_seq_len = 1024

    c.optim.lr = 5e-4
    c.optim.warmup_steps = 500

    c.log_every = 10
    c.eval_every = 1000
    c.save_every = 500
    c.sample_prompts = ("中国的首都是", "太阳系中最大的行星是", "The history of", "Once upon a time")
    return apply_argument(c, arg, smoke, for_cpu)


def for_cpu(c) -> None:
    """What goes with the tiny model: an epoch, in steps that two CPU cores take seconds for."""
    c.workdir = "out/tiny/pretrain"
    c.epochs, c.batch_size, c.accum_steps, c.remat = 1.0, 4, 1, "none"
    c.scan_unroll = 4
    c.data.max_seq_len = 512
    c.optim.lr, c.optim.warmup_steps = 2e-3, 100
    c.log_every, c.eval_every, c.save_every = 4, 200, 100


def smoke(c) -> None:
    """A minute on a CPU, to see that data, model and loop work together."""
    c.workdir = "out/smoke/pretrain"
    c.epochs, c.steps, c.batch_size, c.accum_steps = 0.0, 20, 8, 2
    c.model.update(dict(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=0, ffn_dim=0))
    c.data.max_seq_len = 128
    c.optim.warmup_steps = 5
    c.log_every, c.eval_every, c.save_every = 1, 10, 10
    c.sample_prompts = ("中国", "The")
