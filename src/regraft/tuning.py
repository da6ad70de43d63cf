"""What `auto` means here: a few steps of the real net in every precision, memory format and mode of compiling; the fastest is kept.

No single setting is the fastest for all nets and machines, and nothing that a phase will train is changed by asking.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor, nn

from regraft import freezing, streams
from regraft.files import digest, write_json
from regraft.hardware import Choice, HardwareSpec, cores
from regraft.watching import units

if TYPE_CHECKING:
    from regraft.batches import Batch
    from regraft.chain import Chain

NOISE = 1.02  # a gain below this factor is none: the plainer choice stands
BEHIND = 1.25  # what is slower than the fastest by this factor takes no further turns
PRECISIONS = {"cpu": ("fp32", "bf16"), "gpu": ("fp32", "bf16", "fp16"), "mps": ("fp32", "fp16")}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Measured:
    """One choice: the seconds of a step, or why there are none."""

    choice: Choice
    seconds: float | None
    why: str | None = None

    def plain(self) -> dict[str, Any]:
        return {**self.choice._asdict(), "seconds": self.seconds, "why": self.why}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Measured:
        return cls(Choice(*(row[key] for key in Choice._fields)), row["seconds"], row["why"])


def candidates(hardware: HardwareSpec, accelerator: str, kernels: bool = True) -> list[Choice]:
    """What to measure, the plainest first: only what is `auto` varies. `kernels`: whether what trains has any (else its format is idle)."""
    plain = hardware.plainest()
    precisions = PRECISIONS[accelerator] if hardware.precision == "auto" else (plain.precision,)
    formats = ("contiguous", "channels_last") if hardware.memory_format == "auto" and kernels else (plain.memory_format,)
    # on a processor compiling costs a minute and gains nothing
    compiled = (False, True) if hardware.compile == "auto" and accelerator == "gpu" else (plain.compile,)
    return [Choice(*each) for each in product(precisions, formats, compiled)]  # type: ignore[arg-type]


def measure(
    step: Callable[[Choice], float], choices: Sequence[Choice], warm: int = 1, steps: int = 5, seconds: float = 20
) -> list[Measured]:
    """Each choice's fastest step, in seconds: whatever else a machine does only adds to it. `step` makes one step and tells its seconds;
    NaN: what came out is no number.

    The choices take turns, so that a machine that slows down slows all of them. The first `warm` turns do not count, as long as there
    are others: once the steps have taken `seconds` together, no further turn begins. A choice that raises or gives NaN drops out; one
    that is far behind after two turns rests, so that the time goes to those that may win.
    """
    taken: dict[Choice, list[float]] = {choice: [] for choice in choices}
    out: dict[Choice, str] = {}
    for turn in range(warm + steps):
        if turn and sum(map(sum, taken.values())) >= seconds:
            break
        counted = {choice: min(times[warm:]) for choice, times in taken.items() if len(times) >= warm + 2 and choice not in out}
        limit = BEHIND * min(counted.values(), default=float("inf"))
        for choice in choices:
            if choice in out or counted.get(choice, 0.0) > limit:
                continue
            try:
                needed = step(choice)
            except Exception as error:  # whatever a library raises on the way: this choice does not run here
                out[choice] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            else:
                if needed == needed:
                    taken[choice].append(needed)
                else:
                    out[choice] = "its numbers are not finite"
    return [
        Measured(choice, None, out[choice]) if choice in out else Measured(choice, round(min(times[warm:] or times), 6))
        for choice, times in taken.items()
    ]


def fastest(measured: Sequence[Measured]) -> Choice:
    """The plainest choice that is as fast as any, give or take the noise; the first where none ran, and so the run tells what is wrong."""
    ran = [(each.seconds, each.choice) for each in measured if each.seconds is not None]
    best = min((seconds for seconds, _ in ran), default=0.0)
    return next((choice for seconds, choice in ran if seconds <= best * NOISE), measured[0].choice)


def trial(module: Any, batch: Batch) -> Callable[[Choice], float]:
    """choice -> seconds of one forward and backward pass of a phase's module on a batch; NaN where a number is not finite.

    The module has a `chain` and a `phase`, and is called with a batch. Its weights, statistics, gradients, modes and random streams are
    the same before and after. The loss is a stand-in (the mean of the squared logits): what it costs is nothing beside the net.
    """
    chain: Chain = module.chain

    def step(choice: Choice) -> float:
        device = next(chain.parameters()).device
        here, rows = move_data_to_device(batch, device), len(batch.x)
        with untouched(module), applied(module, choice), streams.seeded(0, "trial"), freezing.lone(chain, rows, rows, False):
            module.train()
            module.zero_grad(set_to_none=True)
            streams.place(chain, (0, "trial"), rows, torch.arange(rows))
            began = _now(device)
            with torch.autocast(device.type, DTYPES[choice.precision], enabled=choice.precision != "fp32"):
                logits: Tensor = module(here)
                loss = logits.float().square().mean()
                for weight, others in chain.heard():
                    loss = loss + weight * others.float().square().mean()
            loss.backward()
            seconds = _now(device) - began
            found = [loss.detach(), *(p.grad for p in module.parameters() if p.grad is not None)]
            return seconds if all(bool(each.isfinite().all()) for each in found) else float("nan")

    return step


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


@contextmanager
def applied(module: Any, choice: Choice) -> Iterator[None]:
    """What lies above the phase's boundary is laid out and compiled as chosen inside the block; precision is autocast's affair.

    What lies below is left as it is, so that cached and live give the same. A state dict keeps its names and, after the block, its layout.
    """
    chain, boundary = module.chain, module.phase.boundary
    kernels = [p for name, p in chain.named_parameters() if p.dim() == 4 and not chain.below(name, boundary)]
    above = {name: unit for name, unit in units(chain.backbone).items() if not chain.below(f"backbone.{name}", boundary)}
    compiled = list(above.values()) if choice.compile else []
    before = [vars(unit).get("forward") for unit in compiled]
    try:
        if choice.memory_format == "channels_last":
            _lay_out(kernels, torch.channels_last)
        for unit in compiled:
            vars(unit)["forward"] = torch.compile(unit.forward)  # not the unit itself: names would change
        yield
    finally:
        for unit, forward in zip(compiled, before, strict=True):
            vars(unit).pop("forward")
            if forward is not None:
                vars(unit)["forward"] = forward
        if choice.memory_format == "channels_last":
            _lay_out(kernels, torch.contiguous_format)


def _lay_out(kernels: Sequence[nn.Parameter], memory_format: torch.memory_format) -> None:
    """Convolutions take the format of their weights [o, i, h, w] for all that follows."""
    for kernel in kernels:
        kernel.data = kernel.data.contiguous(memory_format=memory_format)
        kernel.grad = None if kernel.grad is None else kernel.grad.contiguous(memory_format=memory_format)


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Whatever happens inside the block, the module's weights, buffers, gradients and modes, and torch's random streams, are as before."""
    parameters = [(p, p.data, p.data.clone() if p.requires_grad else None, p.grad, p.requires_grad) for p in module.parameters()]
    buffers = [(part, name, t, t.clone()) for part in module.modules() for name, t in part._buffers.items() if t is not None]
    modes = [(part, part.training) for part in module.modules()]
    for parameter in module.parameters():
        parameter.grad = None  # what is added up inside must not end up in the gradients that are put back
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        with torch.no_grad():
            for parameter, data, copy, gradient, wanted in parameters:
                parameter.data = data if copy is None else data.copy_(copy)
                parameter.grad = gradient
                parameter.requires_grad_(wanted)
            for part, name, tensor, copy in buffers:
                part._buffers[name] = tensor.copy_(copy)
        for part, mode in modes:
            part.training = mode


class Kept:
    """What was measured once: a file for each question, in the cache folder."""

    def __init__(self, folder: Path, question: Mapping[str, Any]) -> None:
        """`question`: plain data, all that decides the answer."""
        self.question = dict(question)
        self.path = folder / "tuning" / f"{digest(self.question)[:32]}.json"

    def get(self) -> list[Measured] | None:
        """None: never asked, or the file is damaged."""
        try:
            return [Measured.of(row) for row in json.loads(self.path.read_text("utf-8"))["measured"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, measured: Sequence[Measured]) -> None:
        write_json(self.path, {"question": self.question, "measured": [each.plain() for each in measured]})

    def wait(self, seconds: float = 600) -> list[Measured]:
        """The answer that rank 0 is about to put. Raises TimeoutError after `seconds`."""
        end = time.monotonic() + seconds
        while (found := self.get()) is None:
            if time.monotonic() > end:
                raise TimeoutError(f"rank 0 has not measured what is fastest within {seconds:g} s")
            time.sleep(0.1)
        return found


def settle(hardware: HardwareSpec, module: Any, batch: Batch, folder: Path, net: Mapping[str, Any]) -> tuple[Choice, dict[str, Any] | None]:
    """What a phase is computed in, and what the record says of it (None: nothing was auto).

    `batch`: of the size and shape that a device will work through; `folder`: the cache's; `net`: plain data that names the net. Measured
    once for the same net, phase, batch and machine; with several ranks, rank 0 measures and the others follow.
    """
    accelerator, chain, phase = hardware.accelerator(), module.chain, module.phase
    kernels = any(p.dim() == 4 and not chain.below(name, phase.boundary) for name, p in chain.named_parameters())
    choices = candidates(hardware, accelerator, kernels)
    if len(choices) == 1:
        return choices[0], None
    device = next(chain.parameters()).device
    kept = Kept(
        folder,
        {
            "net": dict(net),
            "boundary": phase.boundary,
            "trains": sorted(name for name, parameter in chain.named_parameters() if parameter.requires_grad),
            "batch": list(batch.x.shape),
            "on": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.node()} {platform.processor()}",
            "cores": cores(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "choices": [list(choice) for choice in choices],
        },
    )
    found = kept.get()
    known = found is not None
    if found is None and int(os.environ.get("RANK", 0)):
        found = kept.wait()
    elif found is None:
        found = measure(trial(module, batch), choices)
        kept.put(found)
    choice = fastest(found)
    return choice, {"phase": phase.name, "choice": choice._asdict(), "measured": [each.plain() for each in found], "known": known}
