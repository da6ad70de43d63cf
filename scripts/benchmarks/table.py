"""A measured row, and the Markdown table of all rows with the machine that they were measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    what: str
    must: str
    reached: str  # "-" where there was nothing to measure against
    holds: bool | None  # None: not measured
    seconds: Mapping[str, float] = field(default_factory=dict)  # what the ratio was made of
    commands: Sequence[str] = ()


def interleaved(rounds: int, measured: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Each one's median over the rounds; all of them in every round, so that a machine that slows down slows all."""
    taken: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, measure in measured.items():
            taken[name].append(measure())
    return {name: median(values) for name, values in taken.items()}


def machine() -> dict[str, str]:
    """Processor, cores, memory and the libraries that compute."""
    processor = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor()
    )
    kilobytes = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    features = {flag for line in _lines("/proc/cpuinfo") if line.startswith("flags") for flag in line.split()}
    units = [name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in features]
    return {
        "processor": f"{processor} ({units[0]})" if units else processor,
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": f"{kilobytes / 2**20:.0f} GiB" if kilobytes else "unknown",
        "threads": os.environ.get("OMP_NUM_THREADS", "each library's own"),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in ("torch", "pytorch-lightning", "timm")},
    }


def markdown(rows: Sequence[Row], where: Mapping[str, str]) -> str:
    """The table, the machine, and the commands of each row."""
    said = {True: "yes", False: "no", None: "-"}
    lines = ["| what | must reach | reached | holds | seconds |", "|---|---|---|---|---|"]
    for row in rows:
        seconds = ", ".join(f"{name} {value:.3g}" for name, value in row.seconds.items())
        lines.append(f"| {row.what} | {row.must} | {row.reached} | {said[row.holds]} | {seconds} |")
    lines += ["", "; ".join(f"{name} {value}" for name, value in where.items()), ""]
    for row in rows:
        lines += [f"- {row.name}: {'; '.join(f'`{command}`' for command in row.commands)}" for _ in row.commands[:1]]
    return "\n".join(lines) + "\n"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8").splitlines()
    except OSError:
        return []
