"""What a job costs beside its work, many small jobs on one machine, and a sweep that finds all of its jobs done.

python -m benchmarks.jobs work FOLDER RUNS    prints {"seconds": of each run, in a process that has loaded all there is to load}
python -m benchmarks.jobs copies FOLDER       makes a finished run's folder into those of all RESUMED, and prints {"folders": how many}
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.commands import REGRAFT, Bench
from benchmarks.sweeps import command
from benchmarks.table import Row, interleaved

TINY = [
    *("dataset=digits", "dataset.per_class=2", 'dataset.classes=["0","1"]', "model=mlp", "model.weights=none", "freeze=none"),
    *("trainer.max_epochs=1", "hardware=cpu", "hardware.workers=0", "hardware.threads=1", "plots=false"),
]
FEW, MORE, MANY = 10, 50, 200
RESUMED = [*TINY, "seed=range(10)", "head.dropout=" + ",".join(f"0.{each}" for each in range(10)), "optimizer.lr=range(0.01,0.11,0.01)"]


def seeds(count: int) -> list[str]:
    return [*TINY, f"seed=range({count})"]


def overhead(bench: Bench) -> Row:
    """What comes with each further job of a sweep, less the same jobs one after the other in a warm process."""
    cache, controller = bench.fresh("cache"), {FEW: 0.0, MORE: 0.0}

    def whole(count: int) -> float:
        seconds = bench.sweep(seeds(count), cache, count)
        controller[count] = bench.processor
        return seconds

    whole(FEW)  # the data's fingerprint is known from here on
    seconds = interleaved(bench.rounds, {str(count): lambda count=count: whole(count) for count in (FEW, MORE)})  # type: ignore[misc]
    seconds["work"] = median(bench.child("jobs", "work", str(bench.fresh("work")), str(MORE))["seconds"])
    job = (seconds[str(MORE)] - seconds[str(FEW)]) / (MORE - FEW)
    beside, its = job - seconds["work"], (controller[MORE] - controller[FEW]) / (MORE - FEW)
    reached = f"{beside:.2f} s, {its:.3f} s of it the controller's"
    must = "at most 0.5 s beyond the work itself, 0.05 s of it in the controller"
    return Row(
        "job", "each further job of a sweep, on warm workers", must, reached, beside <= 0.5 and its <= 0.05, seconds, [command(seeds(MORE))]
    )


def many(bench: Bench) -> Row:
    """One after the other, and two at once."""
    cache = bench.fresh("cache")
    grids = {f"launcher.jobs={jobs}": [*seeds(MANY), f"launcher.jobs={jobs}"] for jobs in (1, 2)}
    seconds = interleaved(bench.rounds, {name: (lambda grid=grid: bench.sweep(grid, cache, MANY)) for name, grid in grids.items()})  # type: ignore[misc]
    reached = ", ".join(f"{name}: {each / MANY:.2f} s a job" for name, each in seconds.items())
    return Row(
        "jobs200", f"{MANY} tiny jobs on this machine", "every one done", reached, True, seconds, [command(grid) for grid in grids.values()]
    )


def resumed(bench: Bench) -> Row:
    """The same command again, when nothing is left to do."""
    folder = bench.fresh("resumed")
    words = [*RESUMED, f"hydra.sweep.dir={folder}", f"cache.dir={bench.fresh('cache')}"]
    bench.run([REGRAFT, "train", *first(words)])
    found = bench.child("jobs", "copies", str(folder), *words)
    seconds = median(bench.run([REGRAFT, "train", "-m", *words])[0] for _ in range(3))
    what = f"a sweep that finds its {found['folders']:,} jobs done"
    holds = seconds < 5 and found["folders"] == 1000
    return Row("resume1000", what, "under 5 s", f"{seconds:.1f} s", holds, {"regraft train -m": seconds}, [command(RESUMED)])


def first(words: list[str]) -> list[str]:
    """The first point of the grid as a single run, in the sweep's folder."""
    from regraft import config, sweep

    jobs = config.Composer().jobs(words, multirun=True)
    [planned] = sweep.plan(jobs[:1])
    own = [word for word in planned.job.overrides if not word.startswith("hydra")]
    return [*own, f"hydra.run.dir={planned.folder.path}"]


def copies(words: list[str]) -> dict[str, Any]:
    """Folders for all points, each with its own config and run id and the first point's figures."""
    from regraft import config, sweep
    from regraft.record import RunFolder

    planned = sweep.plan(config.Composer().jobs(words, multirun=True))
    model = planned[0].folder
    record = model.record
    for each in planned[1:]:
        shutil.copytree(model.path, each.folder.path, ignore=shutil.ignore_patterns("model.safetensors", ".*"))
        folder = RunFolder(each.folder.path)
        folder.update(status="failed")  # it says of itself that it holds another run
        folder.begin(
            each.job.config, {**record, "run_id": each.run_id, "seed": each.job.settings.seed, "overrides": list(each.job.overrides)}
        )
        shutil.copy(model / "model.safetensors", folder / "model.safetensors")
        folder.finish()
    return {"folders": sum(each.done for each in planned)}


def work(folder: Path, runs: int) -> dict[str, Any]:
    from regraft import config, running, sweep

    seconds = []
    for planned in sweep.plan(
        config.Composer().jobs([*seeds(runs), f"hydra.sweep.dir={folder}", f"cache.dir={folder / 'cache'}"], multirun=True)
    ):
        sweep.begin(planned, "scripts/bench", {"git": None, "packages": {}, "machine": {}})
        began = time.perf_counter()
        running.execute([planned.folder], lambda what: None)
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds}


if __name__ == "__main__":
    what, folder, *rest = sys.argv[1:]
    print(json.dumps(work(Path(folder), int(rest[0])) if what == "work" else copies(rest)))
