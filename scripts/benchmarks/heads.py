"""Linear heads over a made cache as large as ImageNet's: the store, and the same arithmetic in a bare loop over a memory-mapped array.

python -m benchmarks.heads FOLDER [ROWS]    prints {"bare": seconds of an epoch, "anonymous_gb": the most that was resident}
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.commands import Bench
from benchmarks.table import Row

ROWS, FEATURES, CLASSES, HEADS, BATCH = 1_281_167, 1280, 100, 12, 4096
CHUNK = 65_536  # rows that are made at once


def row(bench: Bench) -> Row:
    found = bench.child("heads", str(bench.fresh("heads")))
    what = f"one epoch of {HEADS} linear heads, batch {BATCH}, over {ROWS:,} x {FEATURES} bfloat16"
    must = "under 1.5 GB apart from the mapped file; within 2x of a bare loop"
    return Row("imagenet_heads", what, must, "-", None, {"bare": found["bare"]}, ["python -m benchmarks.heads FOLDER"])


def made(path: Path, rows: int = ROWS, features: int = FEATURES) -> Any:
    """A memory-mapped file of random bfloat16 [rows, features], and labels [rows] int64."""
    import torch

    generator = torch.Generator().manual_seed(0)
    table = torch.from_file(str(path), shared=True, size=rows * features, dtype=torch.bfloat16).view(rows, features)
    block = torch.randn(min(CHUNK, rows), features, generator=generator).bfloat16()
    for at in range(0, rows, CHUNK):  # the same numbers again: what they are does not matter
        table[at : at + CHUNK] = block[: min(CHUNK, rows - at)]
    return table, torch.randint(CLASSES, (rows,), generator=generator)


def bare(table: Any, labels: Any, heads: int = HEADS, batch: int = BATCH) -> dict[str, float]:
    """One epoch of AdamW in a shuffled order: its seconds, and the most GB that were resident apart from mapped files."""
    import torch
    from torch.nn.functional import cross_entropy

    weight = (torch.randn(heads, CLASSES, table.shape[1]) / table.shape[1] ** 0.5).requires_grad_()
    bias = torch.zeros(heads, CLASSES, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=1e-3)
    most, began = 0.0, time.perf_counter()
    for index in torch.randperm(len(table)).split(batch):
        x, y = table[index].float(), labels[index]  # [b, f], [b]
        logits = torch.nn.functional.linear(x, weight.flatten(0, 1), bias.flatten())  # [b, h * k]
        losses = cross_entropy(logits.view(-1, CLASSES), y.repeat_interleave(heads), reduction="sum")
        optimizer.zero_grad()
        (losses / len(index)).backward()
        optimizer.step()
        most = max(most, anonymous())
    return {"bare": time.perf_counter() - began, "anonymous_gb": most}


def anonymous() -> float:
    """GB of this process that are resident and belong to no file."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1e6


if __name__ == "__main__":
    print(json.dumps(bare(*made(Path(sys.argv[1]) / "rows.bin", int(sys.argv[2]) if len(sys.argv) > 2 else ROWS))))
