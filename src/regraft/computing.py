"""On what, and in which precision, passes are computed that are not Lightning's own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from regraft.hardware import Choice

if TYPE_CHECKING:
    from regraft.hardware import HardwareSpec


def device_of(hardware: HardwareSpec) -> torch.device:
    """What this rank computes on."""
    kind = hardware.accelerator()
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if kind == "gpu" else torch.device(kind)


def chosen(hardware: HardwareSpec, tuned: Sequence[Mapping[str, Any]]) -> Choice:
    """What the config says; where that is `auto`, what the last phase was found to be fastest in (`tuning` of the record)."""
    return Choice(**tuned[-1]["choice"]) if tuned else hardware.plainest()


def autocast(device: torch.device, choice: Choice) -> torch.autocast:
    """The precision that Lightning would compute in."""
    return torch.autocast(device.type, torch.float16 if choice.precision == "fp16" else torch.bfloat16, enabled=choice.precision != "fp32")
