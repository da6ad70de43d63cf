"""Whole commands, timed from the shell's side, with a cache folder of their own."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[1]
CLIPART = SCRIPTS.parent / "src/regraft/datasets/clipart_data"
REGRAFT = Path(sys.executable).with_name("regraft")
PEER = re.compile(r"([\d.]+)s \(\+([\d.]+)s start\)")  # what both peers print of themselves


@dataclass
class Bench:
    """Where the measured commands run, and what they are measured against."""

    folder: Path  # for caches and run folders; emptied by whoever made it
    peers: Path | None = None  # holds peer_hand.py and peer_lightning.py
    rounds: int = 1
    numbers: Any = field(default_factory=itertools.count)
    pictures: int = 0  # that the last sweep trained on
    processor: float = 0.0  # s that the last command's own process has computed; workers are the children of its server

    def fresh(self, name: str) -> Path:
        """A folder that nobody has used."""
        path = self.folder / f"{name}-{next(self.numbers)}"
        path.mkdir(parents=True)
        return path

    def environment(self) -> dict[str, str]:
        own = {"XDG_CACHE_HOME": str(self.folder / "xdg"), "MPLCONFIGDIR": str(self.folder / "matplotlib"), "PYTHONPATH": str(SCRIPTS)}
        return {**os.environ, **own, "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "CLIPART": os.environ.get("CLIPART", str(CLIPART))}

    def run(self, words: Sequence[str | Path]) -> tuple[float, str]:
        """Seconds and what was printed. Raises RuntimeError, with the last lines, for a command that fails."""
        began, before = time.perf_counter(), os.times()
        done = subprocess.run([str(word) for word in words], env=self.environment(), cwd=self.folder, capture_output=True, text=True)
        seconds, after = time.perf_counter() - began, os.times()
        self.processor = after.children_user + after.children_system - before.children_user - before.children_system
        if done.returncode:
            raise RuntimeError(f"{shlex.join(map(str, words))} failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
        return seconds, done.stdout

    def sweep(self, grid: Sequence[str], cache: Path, runs: int) -> float:
        """Seconds of a whole `regraft train -m`; `pictures` is then how many it trained on. Raises RuntimeError where it does not leave so
        many finished run folders."""
        target = self.fresh("sweep")
        seconds, _ = self.run([REGRAFT, "train", "-m", *grid, f"cache.dir={cache}", f"hydra.sweep.dir={target}"])
        records = [json.loads(path.read_text("utf-8")) for path in target.rglob("record.json")]
        if [record["status"] for record in records] != ["done"] * runs:
            raise RuntimeError(f"{runs} finished run folders were expected in {target}, not {[record['status'] for record in records]}")
        self.pictures = records[0]["data"]["sizes"]["train"]
        return seconds

    def cold(self, grid: Sequence[str], runs: int) -> float:
        """Seconds of a sweep that finds nothing in its cache."""
        return self.sweep(grid, self.fresh("cache"), runs)

    def hand(self, runs: int) -> float:
        """Seconds of the whole command: features once in bf16, then so many of scikit-learn's heads."""
        assert self.peers, "asked for without a folder of peers"
        return self.run([sys.executable, self.peers / "peer_hand.py", str(runs), "bf16"])[0]

    def lightning(self, epochs: int) -> tuple[float, float]:
        """Seconds of the start-up and of one run: its other runs follow in the same process and cost the same."""
        assert self.peers, "asked for without a folder of peers"
        _, said = self.run([sys.executable, self.peers / "peer_lightning.py", "1", str(epochs), "32"])
        match = PEER.search(said)
        if not match:
            raise RuntimeError(f"peer_lightning.py said nothing of its seconds: {said[-500:]}")
        return float(match[2]), float(match[1])

    def child(self, module: str, *words: str) -> dict[str, Any]:
        """What a measuring program of this folder prints as its last line."""
        _, said = self.run([sys.executable, "-m", f"benchmarks.{module}", *words])
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
        return found
