"""Devices, precision and the arithmetic of the batch: the batch size is global, whatever runs it."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from regraft.errors import Problem, UserError, either
from regraft.registry import Group, Named, doc


class HardwareSpec(Named):
    """Common to all entries."""

    devices: int | Literal["auto"] = doc("how many GPUs, or CPU ranks, work on each batch; auto: every GPU that is visible, or one rank")
    accumulate: int = doc("micro-batches that a device works through for each step", ge=1)
    precision: Literal["fp32", "bf16", "fp16"] = doc("what activations are computed in; fp16 needs a GPU")
    batchnorm: Literal["sync", "local", "refuse"] = doc("statistics of a trained BatchNorm over several devices")
    workers: int | Literal["auto"] = doc("processes that read pictures, for each device; auto: half its cores", decides=False)

    def problems(self) -> list[Problem]:
        found = []
        if isinstance(self.devices, int) and self.devices < 1:
            found.append(Problem("devices", self.devices, "at least 1 is needed"))
        if isinstance(self.workers, int) and self.workers < 0:
            found.append(Problem("workers", self.workers, "0 (the training process itself) or more is needed"))
        here = self.accelerator()
        if here == "gpu" and isinstance(self.devices, int) and self.devices > max(1, visible_gpus()):
            remedy = f"{visible_gpus()} GPUs are visible here; take at most that many, or hardware=cpu"
            found.append(Problem("devices", self.devices, remedy))
        if self.precision == "fp16" and here == "cpu":
            found.append(Problem("precision", "fp16", "fp16 needs a GPU; bf16 and fp32 work on a CPU"))
        return found

    def accelerator(self) -> Literal["cpu", "gpu", "mps"]:
        """What this entry runs on here, found without torch."""
        raise NotImplementedError

    def count(self) -> int:
        """How many devices `devices` means here."""
        if isinstance(self.devices, int):
            return self.devices
        return max(1, visible_gpus()) if self.accelerator() == "gpu" else 1

    def trainer(self) -> dict[str, Any]:
        """The arguments of Lightning's Trainer that this entry decides."""
        precision = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[self.precision]
        return {
            "accelerator": self.accelerator(),
            "devices": self.count(),
            "precision": precision,
            "strategy": "ddp" if self.count() > 1 else "auto",
            "accumulate_grad_batches": self.accumulate,
        }

    def syncs(self) -> bool:
        """Whether a trained BatchNorm takes its statistics over all devices: SyncBatchNorm runs on GPUs only."""
        return self.batchnorm == "sync" and self.count() > 1 and self.accelerator() == "gpu"

    def readers(self) -> int:
        """Processes that read pictures for one device."""
        return self.workers if isinstance(self.workers, int) else min(8, cores() // self.count() // 2)


class CPU(HardwareSpec):
    """The processor; several devices are several ranks."""

    def accelerator(self) -> Literal["cpu"]:
        return "cpu"


class GPU(HardwareSpec):
    """CUDA devices."""

    def problems(self) -> list[Problem]:
        found = super().problems()
        if not visible_gpus():
            found.append(Problem("name", "gpu", "no GPU is visible here; hardware=cpu or hardware=auto work"))
        return found

    def accelerator(self) -> Literal["gpu"]:
        return "gpu"


class Auto(HardwareSpec):
    """CUDA where a GPU is visible, else Apple's GPU, else the processor."""

    def accelerator(self) -> Literal["cpu", "gpu", "mps"]:
        if visible_gpus():
            return "gpu"
        return "mps" if (platform.system(), platform.machine()) == ("Darwin", "arm64") else "cpu"


GROUP = Group("hardware", {"auto": Auto, "cpu": CPU, "gpu": GPU}, about="what the run is computed on")


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> int:
    """CUDA devices that a child process would see, counted without torch: the driver's, less what CUDA_VISIBLE_DEVICES hides."""
    driver = Path("/proc/driver/nvidia/gpus")
    there = len(list(driver.iterdir())) if driver.is_dir() else 0
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not there:
        return there
    names = [name.strip() for name in chosen.split(",")]
    hidden = (number for number, name in enumerate(names) if not name or (re.fullmatch(r"-?\d+", name) and not 0 <= int(name) < there))
    return next(hidden, len(names))  # CUDA stops at the first that is not there, such as -1


@dataclass(frozen=True)
class Batch:
    """How a global batch is divided: `size = devices x micro x accumulate`."""

    size: int
    devices: int
    micro: int
    accumulate: int

    def plain(self) -> dict[str, int]:
        numbers = asdict(self)
        return {"global": numbers.pop("size"), **numbers}


def divide(size: int, hardware: HardwareSpec) -> Batch:
    """The arithmetic of the batch. Raises UserError, with the nearest sizes that divide, where `data.batch_size` does not."""
    parts = hardware.count() * hardware.accumulate
    if size % parts or size < parts:
        below = size // parts * parts
        near = [str(number) for number in (below, below + parts) if number > 0]
        what = f"{hardware.count()} devices x {hardware.accumulate} accumulated micro-batches"
        raise UserError(Problem("data.batch_size", size, f"the global batch must divide by {parts} ({what}); {either(near)} would"))
    return Batch(size, hardware.count(), size // parts, hardware.accumulate)
