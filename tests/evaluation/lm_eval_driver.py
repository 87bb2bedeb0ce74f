"""Runs lm-eval in a process of its own: python lm_eval_driver.py ARGUMENTS.json OUT.json

ARGUMENTS: {"model": directory, "include": directory of task files, "runs": [{"tasks", "dtype", "shots", "chat"}]}.
OUT: for each run {task: [{"logprobs", "greedy", "acc", "acc_norm"} of each document]}.
"""

import json
import sys

import torch
import transformers
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager


def widen(model) -> None:
    """float64 throughout: transformers computes RMSNorm and RoPE in float32 whatever the weights are."""
    head_dim, theta = model.config.head_dim, model.config.rope_parameters["rope_theta"]

    def rms_norm(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def rope(self, x, position_ids):
        frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = position_ids[..., None].double() * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = rms_norm.__get__(module)
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = rope.__get__(module)


def main(arguments: str, out: str) -> None:
    with open(arguments) as file:
        given = json.load(file)
    manager, results = TaskManager(include_path=given["include"], include_defaults=False), []
    for run in given["runs"]:
        lm = HFLM(given["model"], dtype=run["dtype"], add_bos_token=True, batch_size=8, device="cpu")
        if run["dtype"] == "float64":
            widen(lm.model)
        done = simple_evaluate(
            lm,
            tasks=run["tasks"],
            num_fewshot=run["shots"],
            apply_chat_template=run["chat"],
            fewshot_as_multiturn=run["chat"],
            task_manager=manager,
            bootstrap_iters=0,
        )
        results.append({task: [_document(sample) for sample in done["samples"][task]] for task in run["tasks"]})
    with open(out, "w") as file:
        json.dump(results, file)


def _document(sample: dict) -> dict:
    logprobs, greedy = zip(*sample["filtered_resps"], strict=True)
    metrics = {metric: sample[metric] for metric in ("acc", "acc_norm") if metric in sample}
    return {"logprobs": logprobs, "greedy": greedy, **metrics}


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main(*sys.argv[1:])
