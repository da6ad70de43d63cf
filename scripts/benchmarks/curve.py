"""The cost of a sweep is flat in runs and linear in pictures: whole commands, the figures as csv, and a picture of them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.commands import Bench
from benchmarks.sweeps import ALWAYS, EPOCHS

RUNS = (1, 2, 4, 8, 16, 32, 64)
PER_CLASS = (4, 8, 16, None)  # train pictures of each of clipart's 19 classes
FIELDS = ("axis", "amount", "ours", "lightning")


def rates(runs: int) -> str:
    """So many learning rates between 1e-4 and 1e-2."""
    return "optimizer.lr=" + ",".join(f"{1e-4 * 100 ** (i / max(1, runs - 1)):.4g}" for i in range(runs))


def measured(bench: Bench, runs: Sequence[int] = RUNS, per_class: Sequence[int | None] = PER_CLASS) -> list[dict[str, str]]:
    """One line for each whole command, from a cold cache: `axis` says whether `amount` counts runs or train pictures."""
    start, one = bench.lightning(EPOCHS) if bench.peers else (0.0, 0.0)
    lines = []
    for count in runs:
        peer = f"{start + count * one:.2f}" if bench.peers else ""
        lines.append({"axis": "runs", "amount": str(count), "ours": f"{bench.cold([rates(count), *ALWAYS], count):.2f}", "lightning": peer})
    for most in per_class:
        few = [] if most is None else [f"dataset.per_class={most}"]
        seconds = bench.cold([rates(4), *ALWAYS, *few], 4)
        lines.append({"axis": "pictures", "amount": str(bench.pictures), "ours": f"{seconds:.2f}", "lightning": ""})
    return lines


def write(lines: Sequence[Mapping[str, str]], folder: Path) -> None:
    """cost.csv and cost.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "cost.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, FIELDS)
        table.writeheader()
        table.writerows(lines)
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axis, name in zip(axes, ("runs", "pictures"), strict=True):
        own = [line for line in lines if line["axis"] == name]
        amounts = [int(line["amount"]) for line in own]
        axis.plot(amounts, [float(line["ours"]) for line in own], "o-", label="regraft, cold cache")
        if any(line["lightning"] for line in own):
            axis.plot(amounts, [float(line["lightning"]) for line in own], "--", label="Lightning loop (one run, extrapolated)")
            axis.set_yscale("log")
        axis.set_xlabel("runs of a sweep" if name == "runs" else "train pictures (4 runs)")
        axis.set_ylabel("seconds of the whole command")
        axis.legend()
    figure.savefig(folder / "cost.png", dpi=120)
    pyplot.close(figure)
