"""What a report of very many runs takes.

python -m benchmarks.reports copies FOLDER    makes the one finished run in FOLDER into RUNS of them, and prints {"folders": how many}
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from itertools import islice, product
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.commands import REGRAFT, Bench
from benchmarks.sweeps import command
from benchmarks.table import Row

RUNS = 10_000
ONE = ["dataset=digits", "model=convnet", "model.width=8", "data.size=16", "model.weights=none", "freeze=none"]
ONE += ["trainer.max_epochs=3", "hardware=cpu", "hardware.workers=0", "plots=false"]
AXES: dict[str, list[Any]] = {
    "optimizer.lr": [10 ** (-4 + step / 10) for step in range(20)],
    "optimizer.weight_decay": [0.0, 1e-4, 1e-3, 1e-2, 1e-1],
    "head.dropout": [0.0, 0.1, 0.2, 0.3, 0.5],
    "model.depth": [1, 2, 3, 4],
    "seed": [0, 1, 2, 3, 4],
}


def row(bench: Bench) -> Row:
    """Of a grid over four keys and five seeds: 2,000 rows."""
    folder = bench.fresh("runs")
    bench.run([REGRAFT, "train", *ONE, f"hydra.run.dir={folder / 'one'}", f"cache.dir={bench.fresh('cache')}"])
    found = bench.child("reports", "copies", str(folder))
    seconds = median(bench.run([REGRAFT, "report", str(folder)])[0] for _ in range(bench.rounds))
    size = (folder / "report" / "index.html").stat().st_size
    holds = seconds < 20 and size < 8_000_000 and found["folders"] == RUNS
    reached = f"{seconds:.1f} s, {size / 1e6:.1f} MB"
    what = f"a report of {found['folders']:,} runs"
    return Row("report10000", what, "under 20 s, the page under 8 MB", reached, holds, {"regraft report": seconds}, [command(ONE)])


def copies(folder: Path) -> dict[str, int]:
    """Run folders like the one that is there, each with its own config and run id, and with metrics that follow the depth and chance."""
    from regraft.record import METRICS, PREDICTIONS, RunFolder

    one, draw = RunFolder(folder / "one"), random.Random(0)
    config, record = one.config, one.record
    for number, values in enumerate(islice(product(*AXES.values()), RUNS)):
        own, overrides = json.loads(json.dumps(config)), []
        for key, value in zip(AXES, values, strict=True):
            section, _, name = key.rpartition(".")
            (own[section] if section else own)[name] = value
            overrides.append(f"{key}={value}")
        metrics = {name: draw.uniform(0.5, 0.6) + values[3] / 20 for name in record["metrics"]}
        made = RunFolder(folder / f"{number:05}")
        made.begin(own, record | {"run_id": f"{number:05}", "overrides": overrides, "metrics": metrics})
        made.update(status="done")
        for file in (PREDICTIONS, METRICS):
            shutil.copyfile(one / file, made / file)
    shutil.rmtree(one.path)
    return {"folders": sum(each.is_dir() for each in folder.iterdir())}


if __name__ == "__main__":
    print(json.dumps(copies(Path(sys.argv[2]))))
