"""Devices, precision and the arithmetic of the batch: the batch size is global, whatever runs it."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import which
from typing import Any, Literal, NamedTuple

from regraft.errors import Problem, UserError, either
from regraft.registry import Group, Named, doc

SHARE = "REGRAFT_CORES"  # the environment variable in which a launcher tells a worker how many cores it may take


class Choice(NamedTuple):
    """How the numbers of what trains are computed and laid out. The first of several is the plainest."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    compile: bool = False

    def __str__(self) -> str:
        return f"{self.precision} {self.memory_format}{' compiled' if self.compile else ''}"


class HardwareSpec(Named):
    """Common to all entries."""

    devices: int | Literal["auto"] = doc("how many GPUs, or CPU ranks, work on each batch; auto: every GPU that is visible, or one rank")
    accumulate: int = doc("micro-batches that a device works through for each step", ge=1)
    precision: Literal["fp32", "bf16", "fp16", "auto"] = doc(
        "what activations are computed in; fp16 needs a GPU; auto: what is fastest here"
    )
    memory_format: Literal["contiguous", "channels_last", "auto"] = doc("how pictures lie in memory; auto: what is fastest here")
    compile: bool | Literal["auto"] = doc("whether torch.compile translates what trains; auto: on a GPU, where it is faster")
    batchnorm: Literal["sync", "local", "refuse"] = doc("statistics of a trained BatchNorm over several devices")
    workers: int | Literal["auto"] = doc("processes that read pictures, for each device; auto: half its cores", decides=False)
    threads: int | Literal["auto"] = doc("threads that compute, for each device; auto: its share of the cores", decides=False)

    def problems(self) -> list[Problem]:
        return [*self.wrong(), *self.missing()]

    def wrong(self) -> list[Problem]:
        """What is a mistake on any machine."""
        found = []
        if isinstance(self.devices, int) and self.devices < 1:
            found.append(Problem("devices", self.devices, "at least 1 is needed"))
        if isinstance(self.workers, int) and self.workers < 0:
            found.append(Problem("workers", self.workers, "0 (the training process itself) or more is needed"))
        if isinstance(self.threads, int) and self.threads < 1:
            found.append(Problem("threads", self.threads, "at least 1 is needed"))
        if self.accelerator() == "mps" and isinstance(self.devices, int) and self.devices > 1:
            found.append(Problem("devices", self.devices, "a Mac has one GPU; take 1, or hardware=ddp_cpu"))
        if self.precision == "fp16" and self.accelerator() == "cpu":
            found.append(Problem("precision", "fp16", "fp16 needs a GPU; bf16 and fp32 work on a CPU"))
        return found

    def missing(self) -> list[Problem]:
        """What this machine lacks for it."""
        found, there = [], visible_gpus()
        if self.accelerator() == "gpu" and isinstance(self.devices, int) and self.devices > there > 0:
            found.append(Problem("devices", self.devices, f"{there} GPUs are visible here; take at most that many, or hardware=cpu"))
        if self.compile is True and not (os.environ.get("CXX") or any(map(which, ("g++", "clang++", "cl")))):
            found.append(
                Problem("compile", True, "torch.compile needs a C++ compiler, and none is found here (g++, clang++, CXX); false works")
            )
        return found

    def unsaid(self) -> list[Problem]:
        """What only the machine of the run could tell, where that is not this one."""
        if self.accelerator() == "gpu" and self.devices == "auto":
            return [
                Problem("devices", "auto", "the run goes to another machine, whose GPUs can't be counted here; say how many: 1, 2, ...")
            ]
        return []

    def warnings(self) -> list[str]:
        """What a user should know who has chosen this entry."""
        return []

    def accelerator(self) -> Literal["cpu", "gpu", "mps"]:
        """What this entry runs on here, found without torch."""
        raise NotImplementedError

    def count(self) -> int:
        """How many devices `devices` means here."""
        if isinstance(self.devices, int):
            return self.devices
        return max(1, visible_gpus()) if self.accelerator() == "gpu" else 1

    def plainest(self) -> Choice:
        """What the keys say; what is auto is as plain as can be, until it has been measured (`regraft.tuning`)."""
        known = {key: value for key in Choice._fields if (value := getattr(self, key)) != "auto"}
        return Choice(**known)

    def measures(self) -> bool:
        """Whether something is left to be measured."""
        return any(getattr(self, key) == "auto" for key in Choice._fields)

    def trainer(self, choice: Choice | None = None) -> dict[str, Any]:
        """The arguments of Lightning's Trainer that this entry decides; `choice`: what was measured to be fastest."""
        from pytorch_lightning.strategies import DDPStrategy

        precision = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[(choice or self.plainest()).precision]
        return {
            "accelerator": self.accelerator(),
            "devices": self.count(),
            "precision": precision,
            "strategy": DDPStrategy(gradient_as_bucket_view=True) if self.count() > 1 else "auto",  # gradients are sent from where they lie
            "accumulate_grad_batches": self.accumulate,
        }

    def syncs(self) -> bool:
        """Whether a trained BatchNorm takes its statistics over all devices: SyncBatchNorm runs on GPUs only."""
        return self.batchnorm == "sync" and self.count() > 1 and self.accelerator() == "gpu"

    def readers(self) -> int:
        """Processes that read pictures for one device."""
        return self.workers if isinstance(self.workers, int) else min(8, cores() // self.count() // 2)

    def computing(self) -> int:
        """Threads that compute for one device. Auto heeds OMP_NUM_THREADS, which a launcher or a user may have set."""
        if isinstance(self.threads, int):
            return self.threads
        given = re.match(r"\s*([1-9]\d*)", os.environ.get("OMP_NUM_THREADS", ""))
        return int(given[1]) if given else max(1, cores() // self.count())


class CPU(HardwareSpec):
    """The processor; several devices are several ranks."""

    def accelerator(self) -> Literal["cpu"]:
        return "cpu"


class DDPCPU(CPU):
    """Several ranks on the processor, which share its cores: what several GPUs would do, tried without them."""


class GPU(HardwareSpec):
    """CUDA devices."""

    def missing(self) -> list[Problem]:
        found = super().missing()
        if not visible_gpus():
            found.append(Problem("name", self.name, "no GPU is visible here; hardware=cpu or hardware=auto work"))
        return found

    def accelerator(self) -> Literal["gpu"]:
        return "gpu"


class Azure(GPU):
    """The CUDA devices of one of Azure's machines, on which the run is started."""

    instance: str = doc("Azure's name of the machine", decides=False)
    gpus: str = doc("how many GPUs of which kind the machine has", decides=False)
    note: str | None = doc("what is wrong with the machine today, and what takes its place; null: nothing", decides=False)

    def problems(self) -> list[Problem]:
        return [
            each._replace(remedy=f"{each.remedy} ({self.instance}: {self.note})" if self.note else each.remedy)
            for each in super().problems()
        ]

    def warnings(self) -> list[str]:
        return [f"hardware={self.name} ({self.instance}, {self.gpus}): {self.note}"] if self.note else []


class MPS(HardwareSpec):
    """The GPU of a Mac."""

    def missing(self) -> list[Problem]:
        found = super().missing()
        if not _is_mac():
            found.append(Problem("name", self.name, "this is no Mac with a GPU of Apple's; hardware=cpu or hardware=auto work"))
        return found

    def accelerator(self) -> Literal["mps"]:
        return "mps"


class Auto(HardwareSpec):
    """CUDA where a GPU is visible, else Apple's GPU, else the processor."""

    def unsaid(self) -> list[Problem]:
        return [Problem("name", "auto", "it is what a machine has, and the run goes to another one; hardware=cpu or hardware=gpu work")]

    def accelerator(self) -> Literal["cpu", "gpu", "mps"]:
        if visible_gpus():
            return "gpu"
        return "mps" if _is_mac() else "cpu"


AZURE = (  # machines of Azure's by generation: the talk's own, and what is there today
    *("azure_nc6", "azure_nc12", "azure_nc24"),
    *("azure_nc4as_t4", "azure_nc64as_t4"),
    *("azure_nc24ads_a100", "azure_nc48ads_a100", "azure_nc96ads_a100"),
    *("azure_nc40ads_h100", "azure_nc80adis_h100"),
)
GROUP = Group(
    "hardware",
    {"auto": Auto, "cpu": CPU, "ddp_cpu": DDPCPU, "gpu": GPU, "mps": MPS, **dict.fromkeys(AZURE, Azure)},
    about="what the run is computed on",
)


def _is_mac() -> bool:
    return (platform.system(), platform.machine()) == ("Darwin", "arm64")


def cores() -> int:
    """Cores that this process may take: all, or what a launcher has left to it."""
    if share := os.environ.get(SHARE):
        return int(share)
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

    def halved(self, times: int) -> Batch:
        """The same global batch in micro-batches of half the size, and twice as many of them, so many times over; at most one row each."""
        parts = 1
        for _ in range(times):
            parts *= 2 if parts < self.micro else 1
        return Batch(self.size, self.devices, -(-self.micro // parts), self.accumulate * parts)

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
