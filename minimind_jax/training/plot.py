"""Loss curves: python -m minimind_jax.training.plot WORKDIR... [--out FILE.png]

Draws training loss (raw and smoothed), held-out loss, learning rate and tokens/s of one or more
runs over the tokens they have seen; also held-out bits per byte, or of DPO the reward accuracy.
One workdir: writes WORKDIR/curves.png unless --out is given.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from minimind_jax.errors import UserError, user_errors
from minimind_jax.workdir import Workdir, read_metrics

_SMOOTHING = 0.9  # share of the old value in the moving average


def plot(workdirs: list[Path], out: Path) -> None:
    """Writes the curves of `workdirs` to `out`. Raises UserError where there is nothing to draw."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    of_dpo = []
    for i, path in enumerate(workdirs):
        workdir = Workdir(path)
        lines = read_metrics(workdir)
        if not lines:
            raise UserError(f"{workdir.metrics} does not exist or is empty: {path} has logged no step yet")
        _draw(axes.flat, lines, _tokens_per_step(workdir), str(path.name), f"C{i}")
        of_dpo.append("rewards/accuracies" in lines[0])
    losses = "loss (nats per target token)" if not any(of_dpo) else "loss"
    second = "held-out bits per byte"
    if any(of_dpo):
        second = "reward accuracy" if all(of_dpo) else "held-out bits per byte, of DPO reward accuracy"
    names = (losses, second, "learning rate", "tokens/s")
    for axis, name in zip(axes.flat, names, strict=True):
        axis.set(title=name, xlabel="tokens (millions)")
        axis.grid(alpha=0.3)
    axes.flat[0].legend()
    figure.savefig(out, dpi=110, format="png")


def _draw(axes: Any, lines: list[dict[str, Any]], tokens_per_step: int, name: str, color: str) -> None:
    loss_axis, quality_axis, lr_axis, rate_axis = axes

    def series(key: str) -> tuple[np.ndarray, np.ndarray]:
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        steps, values = np.asarray(points, float).reshape(-1, 2).T
        return steps * tokens_per_step / 1e6, values

    x, loss = series("loss")
    loss_axis.plot(x, loss, color=color, alpha=0.25, linewidth=0.8)
    loss_axis.plot(x, _smoothed(loss), color=color, label=f"{name}: training")
    x, held_out = series("val_loss")
    if len(x):
        loss_axis.plot(x, held_out, "o--", color=color, markersize=4, label=f"{name}: held-out")
    for key in ("val_bpb", "val_rewards/accuracies"):
        quality_axis.plot(*series(key), "o--", color=color, markersize=4)
    x, accuracies = series("rewards/accuracies")
    quality_axis.plot(x, _smoothed(accuracies), color=color, alpha=0.5)
    lr_axis.plot(*series("lr"), color=color)
    rate_axis.plot(*series("tokens_per_s"), color=color)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Exponential moving average, corrected for its start."""
    out, total, weight = np.empty_like(values), 0.0, 0.0
    for i, value in enumerate(values):
        total, weight = _SMOOTHING * total + value, _SMOOTHING * weight + 1
        out[i] = total / weight
    return out


def _tokens_per_step(workdir: Workdir) -> int:
    config = workdir.read_config()
    rows_of = 2 if config["stage"] == "dpo" else 1  # a row of pairs is twice as long
    return config["batch_size"] * config["data"]["max_seq_len"] * rows_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", type=Path, metavar="WORKDIR")
    parser.add_argument("--out", type=Path, help="PNG to write; default: curves.png in the first workdir")
    args = parser.parse_args()
    with user_errors():
        out = args.out or args.workdirs[0] / "curves.png"
        if args.out and (args.out.is_dir() or not args.out.parent.is_dir()):
            raise UserError(f"--out {args.out} cannot be written: name a file in a directory that exists")
        plot(args.workdirs, out)
        print(f"wrote {out}")


if __name__ == "__main__":
    main()
