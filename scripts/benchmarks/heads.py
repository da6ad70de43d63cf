"""Linear heads over a made cache as large as ImageNet's: the store, and the same arithmetic in a bare loop over a memory-mapped array.

python -m benchmarks.heads FOLDER [ROWS]    prints {"ours": seconds of an epoch, "bare": ..., "gb": {"ours": the most resident, ...}}
"""

from __future__ import annotations

import json
import sys
import threading
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
    ratio, most = found["ours"] / found["bare"], found["gb"]["ours"]
    seconds = {name: found[name] for name in ("ours", "bare")}
    reached = f"{ratio:.2f}x; {most:.2f} GB (bare {found['gb']['bare']:.2f})"
    return Row("imagenet_heads", what, must, reached, ratio <= 2 and most < 1.5, seconds, ["python -m benchmarks.heads FOLDER"])


def made(path: Path, rows: int = ROWS, features: int = FEATURES) -> Any:
    """A memory-mapped file of random bfloat16 [rows, features], and labels [rows] int64."""
    import torch

    generator = torch.Generator().manual_seed(0)
    table = torch.from_file(str(path), shared=True, size=rows * features, dtype=torch.bfloat16).view(rows, features)
    block = torch.randn(min(CHUNK, rows), features, generator=generator).bfloat16()
    for at in range(0, rows, CHUNK):  # the same numbers again: what they are does not matter
        table[at : at + CHUNK] = block[: min(CHUNK, rows - at)]
    return table, torch.randint(CLASSES, (rows,), generator=generator)


def bare(table: Any, labels: Any, heads: int = HEADS, batch: int = BATCH) -> float:
    """Seconds of one epoch of AdamW in a shuffled order."""
    import torch
    from torch.nn.functional import cross_entropy

    weight = (torch.randn(heads, CLASSES, table.shape[1]) / table.shape[1] ** 0.5).requires_grad_()
    bias = torch.zeros(heads, CLASSES, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=1e-3)
    began = time.perf_counter()
    for index in torch.randperm(len(table)).split(batch):
        x, y = table[index].float(), labels[index]  # [b, f], [b]
        logits = torch.nn.functional.linear(x, weight.flatten(0, 1), bias.flatten())  # [b, h * k]
        losses = cross_entropy(logits.view(-1, CLASSES), y.repeat_interleave(heads), reduction="sum")
        optimizer.zero_grad()
        (losses / len(index)).backward()
        optimizer.step()
    return time.perf_counter() - began


def ours(table: Any, labels: Any, folder: Path, heads: int = HEADS, batch: int = BATCH) -> float:
    """Seconds of one epoch of a stack of heads with different rates, through the code that trains a group; Lightning's start included."""
    from types import SimpleNamespace

    import torch
    from torch import nn

    from regraft import stacking
    from regraft.cache import Rows
    from regraft.config import Composer
    from regraft.feeds import Cached
    from regraft.freeze import phase
    from regraft.judging import Best, Judge
    from regraft.record import RunFolder

    class Made(Cached):
        """Rows that no picture was ever run for."""

        def __init__(self, rows: Any, truth: Any) -> None:
            self.samples, self.truth = range(len(truth)), truth
            count, shape = torch.arange(len(truth)), tuple(rows.shape[1:])
            self.views = [Rows([rows], torch.zeros_like(count), count, shape, rows.dtype)]

    members = []
    for number in range(heads):
        words = [f"data.batch_size={batch}", f"optimizer.lr={1e-3 * (1 + number)}", "trainer.max_epochs=1", "trainer.keep=last"]
        [job] = Composer().jobs(words, multirun=False)
        head = job.settings.head.build(table.shape[1], [str(each) for each in range(CLASSES)])
        engine = SimpleNamespace(
            settings=job.settings,
            epochs=1,
            batch_steps=-(-len(labels) // batch),
            phases=[phase("head", 1, ("head",))],
            folder=RunFolder(folder / str(number)),
            loss=job.settings.loss,
            units=None,
            source=SimpleNamespace(classes=[str(each) for each in range(CLASSES)]),
            chain=SimpleNamespace(features=table.shape[1], backbone=nn.Identity()),
            sampling={"views": 1, "expand": False, "mix": None},
        )
        assert isinstance(head, nn.Module)
        member = stacking.Member(engine, head, Judge(job.settings, Best()))  # type: ignore[arg-type]
        member.restore({})
        members.append(member)
    began = time.perf_counter()
    stacking.train(
        members, {"train": Made(table, labels), "val": Made(table[:0], labels[:0])}, members[0].engine.settings.hardware.plainest()
    )
    took = time.perf_counter() - began
    if any(member.error or member.epoch != 1 for member in members):
        raise RuntimeError("a head did not train")
    return took


class Watch:
    """The most GB of this process that were resident and belonged to no file, looked at ten times a second while the block lasts."""

    def __enter__(self) -> Watch:
        self.most, self._end = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.1):
            self.most = max(self.most, anonymous())


def anonymous() -> float:
    """GB of this process that are resident and belong to no file."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1e6


def main(folder: Path, rows: int) -> dict[str, Any]:
    table, labels = made(folder / "rows.bin", rows)
    table.sum(dtype=table.dtype)  # both sides find the file in memory
    with Watch() as mine:
        seconds = ours(table, labels, folder)
    with Watch() as others:
        other = bare(table, labels)
    return {"ours": seconds, "bare": other, "gb": {"ours": mine.most, "bare": others.most}}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else ROWS)))
