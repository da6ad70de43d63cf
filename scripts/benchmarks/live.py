"""A full fine-tune with `hardware=auto`, against the best of four bare PyTorch loops over the same pictures, decoded in memory.

    python -m benchmarks.live NET TURNS FOLDER    prints {"ours": [pictures per second], "bare": {loop: [...]}, "choice": {...}}

Both sides take turns in one process: the loops before each epoch of ours and after the last one. An epoch counts from its beginning,
with the wait for its first batch, to the end of its last step; start-up, tuning, validation and the first turn do not count.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.commands import Bench
from benchmarks.table import Row

SIDE, BATCH, CLASSES, STEPS = 128, 32, 19, 6
NETS = {
    "efficientnet_lite0": ["model=efficientnet_lite"],
    "resnet18": ["model=resnet", "model.depth=18"],
    "vit_tiny": ["model=timm", "model.arch=vit_tiny_patch16_224"],
}
WORDS = ["model.weights=none", "freeze=none", f"data.size={SIDE}", "plots=false"]
AUTO = ["hardware=auto", "hardware.precision=auto", "hardware.memory_format=auto"]
LEAST = 0.95


def row(net: str, turns: int = 5) -> Callable[[Bench], Row]:
    def measured(bench: Bench) -> Row:
        found = bench.child("live", net, str(turns), str(bench.fresh("live")))
        best, ratios = judged(found["ours"], found["bare"])
        spread = f"{median(ratios):.2f} of {best} ({min(ratios):.2f} to {max(ratios):.2f}); auto took {found['choice']}"
        rates = {"ours, pictures/s": median(found["ours"])} | {f"{name}, pictures/s": median(each) for name, each in found["bare"].items()}
        said = " ".join(["regraft train", *NETS[net], *WORDS, *AUTO])
        what = f"full fine-tune of {net}, live, {SIDE} px"
        return Row(f"live_{net}", what, f"at least {LEAST} of the best of four bare loops", spread, median(ratios) >= LEAST, rates, [said])

    return measured


def judged(ours: list[float], bare: dict[str, list[float]]) -> tuple[str, list[float]]:
    """The best loop, and ours over it, turn by turn: each of our epochs stands between two turns of the loops."""
    best = max(bare, key=lambda name: median(bare[name]))
    around = zip(bare[best], bare[best][1:], strict=False)
    return best, [rate / ((before + after) / 2) for rate, (before, after) in zip(ours, around, strict=True)]


class Bare:
    """What one writes by hand: AdamW on shuffled batches of pictures [n, 3, h, w] uint8."""

    def __init__(self, net: str, x: Any, y: Any, precision: str, layout: str) -> None:
        import torch

        self.x, self.y, self.half, self.last = x, y, precision == "bf16", layout == "channels_last"
        torch.manual_seed(0)
        self.net = bare_net(net).train()
        if self.last:
            self.net = self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3)
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def run(self, steps: int) -> float:
        """Pictures per second."""
        import torch

        order = torch.randperm(len(self.x))[: steps * BATCH]
        began = time.perf_counter()
        for index in order.split(BATCH):
            x = (self.x[index].float() / 255 - self.mean) / self.std  # [b, 3, h, w]
            x = x.contiguous(memory_format=torch.channels_last) if self.last else x
            with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
                loss = torch.nn.functional.cross_entropy(self.net(x), self.y[index])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return len(order) / (time.perf_counter() - began)


def bare_net(net: str) -> Any:
    import timm
    import torchvision

    if net == "resnet18":
        return torchvision.models.resnet18(num_classes=CLASSES)
    if net == "vit_tiny":
        return timm.create_model("vit_tiny_patch16_224", img_size=SIDE, num_classes=CLASSES)
    return timm.create_model("tf_efficientnet_lite0", num_classes=CLASSES)


def main(net: str, turns: int, folder: Path) -> dict[str, Any]:
    os.environ["XDG_CACHE_HOME"] = str(folder / "xdg")
    import torch

    from regraft import config, running, sweep
    from regraft.epochs import Epochs

    words = [
        *NETS[net],
        *WORDS,
        *AUTO,
        f"trainer.max_epochs={turns + 1}",
        f"cache.dir={folder / 'cache'}",
        f"hydra.run.dir={folder / 'run'}",
    ]
    [planned] = sweep.plan(config.Composer().jobs(words, multirun=False))
    sweep.begin(planned, "scripts/bench", {"git": None, "packages": {}, "machine": {}})
    source = planned.job.settings.dataset.open(folder / "cache")
    train = source.split("train")
    x = torch.stack([torch.from_numpy(source.read(sample)).permute(2, 0, 1) for sample in train])
    y = torch.tensor([sample.label for sample in train])
    loops: dict[str, Bare] = {}
    ours: list[float] = []
    bare: dict[str, list[float]] = {}
    state = {"began": 0.0, "pictures": 0}

    def turn(steps: int) -> None:
        for name, loop in loops.items():
            bare.setdefault(name, []).append(loop.run(steps))

    def began(self: Epochs, trainer: Any, module: Any) -> None:
        if not loops:  # after the tuning, so that both sides have the same threads and memory
            loops.update(
                {f"{p} {layout}": Bare(net, x, y, p, layout) for p in ("fp32", "bf16") for layout in ("contiguous", "channels_last")}
            )
        turn(STEPS)
        state.update(pictures=0, began=time.perf_counter())

    def stepped(self: Epochs, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        state["pictures"] += batch.share.size
        if index + 1 == trainer.num_training_batches:
            ours.append(state["pictures"] / (time.perf_counter() - state["began"]))

    Epochs.on_train_epoch_start, Epochs.on_train_batch_end = began, stepped  # type: ignore[method-assign, assignment]
    running.execute([planned.folder], lambda what: None)
    turn(STEPS)
    tuned = planned.folder.record["tuning"][0]["choice"]
    choice = f"{tuned['precision']} {tuned['memory_format']}"
    return {"ours": ours[1:], "bare": {name: rates[1:] for name, rates in bare.items()}, "choice": choice}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))))
