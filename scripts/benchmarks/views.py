"""How often the backbone sees each picture while 12 heads train under d4: counted by a hook on its first convolution.

python -m benchmarks.views FOLDER    prints {"train": pictures, "val": ..., "test": ..., "runs": done, "rows": pictures that ran}
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.commands import Bench
from benchmarks.sweeps import TWELVE, command
from benchmarks.table import Row

D4 = ["augmentation=d4", *TWELVE]
VIEWS = 8


def row(bench: Bench) -> Row:
    found = bench.child("views", str(bench.fresh("views")))
    rows, expected = found["rows"], VIEWS * found["train"] + found["val"] + found["test"]
    reached = f"{(rows - found['val'] - found['test']) / found['train']:g} for each train picture, {found['runs']} runs"
    what = "the same 12 under d4 (8 views)"
    return Row("d4", what, "each picture exactly 8 times", reached, rows == expected and found["runs"] == 12, {}, [command(D4)])


def main(folder: Path) -> dict[str, Any]:
    """Sizes of the splits, runs that are done, and pictures that the first convolution saw."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "xdg")
    import torch

    from regraft import config, running, sweep

    seen: Counter[str] = Counter()
    building = False

    def count(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, torch.nn.Conv2d) and module.in_channels == 3 and not building:
            seen["rows"] += len(inputs[0])

    build = running.build

    def quietly(*args: Any) -> Any:  # a net that is built proves its cuts on a few pictures of noise
        nonlocal building
        building = True
        found = build(*args)
        building = False
        return found

    words = [*D4, "plots=false", f"cache.dir={folder / 'cache'}", f"hydra.sweep.dir={folder / 'sweep'}"]
    planned = sweep.plan(config.Composer().jobs(words, multirun=True))
    running.build = quietly
    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    for group in sweep.groups(planned):
        sweep.begin_together(group, "scripts/bench", {"git": None, "packages": {}, "machine": {}})
        running.execute([each.folder for each in group], lambda what: None)
    hook.remove()
    return {**planned[0].data["sizes"], "runs": sum(each.folder.record["status"] == "done" for each in planned), **seen}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
