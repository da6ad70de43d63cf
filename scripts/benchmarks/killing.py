"""One sweep twice, undisturbed and killed over and over: do both end with the same runs, figures and weights?"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.table import machine
from regraft import files
from regraft.record import METRICS, MODEL, PREDICTIONS, Metrics, RunFolder

WHOLE, KILLED, STATE = "whole", "killed", "killed.json"
VICTIMS = ("controller", "worker", "both")
EVERY = 0.5  # s between two looks at the clock


class Left(NamedTuple):
    """What a finished run is compared by."""

    metrics: dict[str, Any]
    lines: str  # of metrics.csv
    predictions: str  # sha256 of the file
    weights: str


def left(folder: RunFolder) -> Left:
    lines = sorted((row["metric"], int(row["epoch"]), row["value"]) for row in Metrics(folder / METRICS).rows())
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (PREDICTIONS, MODEL)]
    return Left(folder.record["metrics"], repr(lines), *digests)


def folders(root: Path) -> dict[str, RunFolder]:
    """{run id: folder}"""
    found = [RunFolder(path.parent) for path in sorted(root.rglob("record.json"))]
    return {folder.record["run_id"]: folder for folder in found}


def workers(root: Path) -> list[int]:
    """Processes that hold a file of a run folder below `root` open, each the leader of its session: a run's ranks."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            held = any(Path(os.readlink(file)).is_relative_to(root) for file in (process / "fd").iterdir())
            found += [int(process.name)] if held and os.getsid(int(process.name)) == int(process.name) else []
    return sorted(found)


@dataclass
class Trial:
    """Where both sweeps lie, and what is asked of them."""

    folder: Path
    overrides: list[str]
    kills: int
    seed: int

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / STATE
        self.state: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {"took": {}, "moments": [], "killed": []}

    def _keep(self) -> None:
        files.write_text(self.folder / STATE, json.dumps(self.state, indent=1))

    def _begun(self, name: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "regraft.cli", "train", "-m", *self.overrides, f"hydra.sweep.dir={name}"]
        with (self.folder / f"{name}.txt").open("ab") as log:
            return subprocess.Popen(words, cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def _watched(self, name: str, plan: list[tuple[float, str]]) -> int | None:
        """The status of the command, or none where its controller was killed. `plan`: when (s of the sweep's own time), and who."""
        command, tick = self._begun(name), time.monotonic()
        while command.poll() is None:
            time.sleep(EVERY)
            took = self.state["took"]
            took[name] = took.get(name, 0.0) + time.monotonic() - tick
            tick = time.monotonic()
            self._keep()
            if plan and took[name] >= plan[0][0]:
                victim = plan[0][1]
                chosen = workers(self.folder / name)[:1] if victim != "controller" else []
                if victim == "worker" and not chosen:
                    continue  # between two runs
                chosen += [command.pid] if victim != "worker" else []
                for process in chosen:
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                plan.pop(0)
                self.state["killed"].append({"victim": victim, "after": round(took[name], 1), "processes": len(chosen)})
                self._keep()
                if command.pid in chosen:
                    command.wait()
                    return None
        return command.returncode

    def whole(self) -> None:
        """Raises RuntimeError where the undisturbed sweep fails."""
        if (status := self._watched(WHOLE, [])) != 0:
            raise RuntimeError(f"the undisturbed sweep ended with {status}; {self.folder / WHOLE}.txt tells why")

    def disturbed(self) -> None:
        """Raises RuntimeError where the same command doesn't bring the sweep to its end when nobody disturbs it any more."""
        draw, part = random.Random(self.seed), self.state["took"][WHOLE] / self.kills
        self.state["moments"] = self.state["moments"] or [part * (number + draw.random()) for number in range(self.kills)]
        plan = list(zip(self.state["moments"], itertools.cycle(VICTIMS), strict=False))[len(self.state["killed"]) :]
        done: dict[str, list[int]] = {}
        for attempt in range(2 * self.kills + 2):
            status = self._watched(KILLED, plan)
            for run_id, folder in folders(self.folder / KILLED).items():
                if folder.record["status"] == "done":
                    written = [(folder / name).stat().st_mtime_ns for name in (PREDICTIONS, MODEL)]
                    if done.setdefault(run_id, written) != written:
                        raise RuntimeError(f"{run_id} was done, and was run again (attempt {attempt})")
            if status == 0:
                return
        raise RuntimeError(f"the killed sweep does not come to its end; {self.folder / KILLED}.txt tells why")

    def compared(self) -> tuple[bool, str]:
        """Whether both are the same, and what to tell; writes a line for each run into killed.csv."""
        one, other = (folders(self.folder / name) for name in (WHOLE, KILLED))
        rows = []
        for run_id in sorted(one.keys() | other.keys()):
            pair = [left(where[run_id]) if run_id in where and where[run_id].record["status"] == "done" else None for where in (one, other)]
            record, config = (one.get(run_id) or other[run_id]).record, (one.get(run_id) or other[run_id]).config
            rows.append(
                {
                    "run_id": run_id,
                    "depth": config["model"].get("depth"),
                    "dropout": config["head"].get("dropout"),
                    "devices": config["hardware"]["devices"],
                    "seconds": round(record["times"]["total"], 1),
                    "test_accuracy": record["metrics"].get("test/accuracy"),
                    "weights_sha256": pair[0].weights if pair[0] else None,
                    **{name: int(all(pair) and getattr(pair[0], name) == getattr(pair[1], name)) for name in Left._fields},
                }
            )
        with files.whole(self.folder / "killed.csv") as path, path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
        same = [sum(row[name] for row in rows) for name in Left._fields]
        kills = ", ".join(f"{each['victim']} after {each['after']:.0f} s" for each in self.state["killed"])
        figures = ", ".join(f"{name} of {count} runs" for name, count in zip(Left._fields, same, strict=True))
        took = " and the killed one ".join(f"{self.state['took'][name]:.0f} s" for name in (WHOLE, KILLED))
        said = [f"{len(rows)} runs on {', '.join(machine().values())}", f"the undisturbed sweep took {took}", f"killed: {kills}"]
        return all(count == len(rows) for count in same), "\n".join([*said, f"the same: {figures}"])
