"""Which runs of a sweep share all below their heads, and so are one stack of heads, or one solver's work."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from regraft.files import digest
from regraft.freeze import BackboneFrozen
from regraft.settings import UNDECIDING, Settings

# what heads of one stack may differ in: numbers that need no other shape, data or net
FREE: Mapping[str, tuple[str, ...]] = {
    "optimizer": ("lr", "weight_decay"),
    "head": ("dropout",),
    "loss": ("label_smoothing",),
    "trainer": ("max_epochs",),
}
MOST = max(8, min(256, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))  # runs of a group: each has files open
T = TypeVar("T")


def alone(s: Settings) -> str | None:
    """Why a run trains by itself; None: it may share a stack, or a solver, with others."""
    for obstacle, hinders in OBSTACLES.items():
        if hinders(s):
            return obstacle
    return None


def key(s: Settings, data: str, weights: str) -> str:
    """The same for runs that share all below their heads. `data`: the set's fingerprint; `weights`: their identity."""
    sections: dict[str, dict[str, Any] | None] = {at: spec.deciding() for at, spec in s.specs() if at.split(".")[0] not in UNDECIDING}
    if s.head.fits:  # no epochs, and so nothing of what leads through them
        judged = sections["loss"] if s.monitor.endswith("/loss") else None
        sections |= {"head": {"name": s.head.name}, "optimizer": None, "schedule": None, "loss": judged}
    for section, keys in FREE.items():
        if held := sections.get(section):
            sections[section] = {name: value for name, value in held.items() if name not in keys}
    seed = s.seed if s.model.weights == "none" else None  # random weights are a function of it
    return digest(sections, s.size, seed, data, weights, str(s.cache.folder()), s.cache.mode, s.cache.max_gb)


def grouped(runs: Sequence[tuple[T, Settings, str, str]]) -> list[list[T]]:
    """(what it is, settings, fingerprint of the data, identity of the weights) of each run -> groups, in the order of their first runs."""
    groups: dict[str, list[T]] = {}
    for number, (run, s, data, weights) in enumerate(runs):
        groups.setdefault(f"{number}" if alone(s) else key(s, data, weights), []).append(run)
    return [group[start : start + MOST] for group in groups.values() for start in range(0, len(group), MOST)]


OBSTACLES: Mapping[str, Any] = {
    "sweep.stack=false": lambda s: not s.sweep.stack,
    "more than the head trains": lambda s: not isinstance(s.freeze, BackboneFrozen),
    "cache.mode=off": lambda s: s.cache.mode == "off",
    "several devices": lambda s: s.hardware.count() > 1,
    "one scale of fp16's gradients for all heads": lambda s: (
        s.hardware.precision == "fp16" or (s.hardware.precision == "auto" and s.hardware.accelerator() == "gpu")
    ),
    "a random augmentation": lambda s: s.augmentation.finite() is None and (s.cache.views is None or s.augmentation.mixes),
    "the head can't be stacked": lambda s: not (s.head.stacks or s.head.fits),
    "the head is an earlier run's": lambda s: getattr(s.head, "kept", False),
    "the optimizer can't be stacked": lambda s: not (s.optimizer.stacks or s.head.fits),
    "trainer.max_steps": lambda s: s.trainer.max_steps is not None and not s.head.fits,
    "trainer.ema": lambda s: s.trainer.ema is not None and not s.head.fits,
    "no training": lambda s: not s.trainer.trains and not s.head.fits,
}
