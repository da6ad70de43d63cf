"""What a sweep will need before it runs: launches, passes, disk and time, by what runs like it have needed on this machine."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from regraft.datasets.splits import labelled
from regraft.eviction import FOLDER
from regraft.files import digest, write_json
from regraft.freeze import BackboneFrozen
from regraft.segments import KEY, KEYS, PUBLISHED, listed
from regraft.settings import Settings

LONGEST = 2**20  # bytes of what was noted
DECIDING = ("model", "data", "augmentation", "evaluate", "freeze", "hardware", "cache")  # what lies below the heads, and how it is run
KINDS = ("head", "optimizer")  # of which the name tells how long a step takes


def question(s: Settings, weights: str) -> dict[str, Any]:
    """What decides which stores a run needs, and about how long it takes; `weights`: their identity."""
    of = {key: getattr(s, key).deciding() for key in DECIDING}
    seed = s.seed if s.model.weights == "none" else None
    epochs = None if isinstance(s.freeze, BackboneFrozen) else (s.trainer.max_steps or s.trainer.max_epochs)
    kinds = {key: getattr(s, key).name for key in KINDS}
    return {**of, **kinds, "size": s.size, "seed": seed, "epochs": epochs, "weights": weights, "torch": metadata.version("torch")}


def note(s: Settings, weights: str, record: Mapping[str, Any], epochs: int) -> None:
    """Keep what a finished run, of so many epochs, has needed; where the disk refuses, nothing is kept."""
    path, before = _path(s, weights), recall(s, weights)
    passes = {(each["store"], each["split"]): each for each in (before or {}).get("passes", ())}
    for each in record["cache"]:
        if each["mode"] == "cached":
            at = each["store"], each["split"]
            seconds = each["seconds"] / each["computed"] if each["computed"] else passes.get(at, {}).get("seconds")
            passes[at] = {key: each[key] for key in ("store", "split", "boundary", "bytes")} | {"seconds": seconds}
    times, size = record["times"], (record.get("group") or {"size": 1})["size"]
    spent = {
        "start": times["start"],
        "epoch": times["train"] / max(1, epochs),
        "heads": size,
        "epochs": epochs,
        "evaluate": times["evaluate"],
    }
    with suppress(OSError):
        write_json(path, {"passes": list(passes.values()), "spent": spent})


def recall(s: Settings, weights: str) -> dict[str, Any] | None:
    """What was noted of runs like this one; None: nothing, or nothing that can be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        path = _path(s, weights)
        if path.stat().st_size <= LONGEST:
            told = json.loads(path.read_text("utf-8"))
            [each["store"] + each["split"] + each["boundary"] for each in told["passes"]]
            numbers = [
                *told["spent"].values(),
                *(each["bytes"] for each in told["passes"]),
                *(each["seconds"] or 0 for each in told["passes"]),
            ]
            if all(math.isfinite(number) and number >= 0 for number in numbers):
                return dict(told)
    return None


@dataclass
class Outlook:
    """What is to come. What has never been measured here is counted in `unknown`, and not in the sums."""

    launches: int = 0
    runs: int = 0
    unknown: int = 0  # launches of which nothing is known
    passes: dict[str, int] = field(default_factory=dict)  # boundary -> rows that are to be computed
    there: int = 0  # rows that are there
    bytes: int = 0  # that will be written
    seconds: float = 0.0


def outlook(groups: Sequence[Sequence[tuple[Settings, str, Any]]]) -> Outlook:
    """`groups`: what is launched together, each run with its settings, the identity of its weights, and its opened data."""
    found = Outlook(len(groups), sum(map(len, groups)))
    asked: dict[str, set[str]] = {}  # store -> what earlier groups will have put there
    for group in groups:
        s, weights, source = group[0]
        told = recall(s, weights)
        if told is None:
            found.unknown += 1
            continue
        spent = told["spent"]
        epochs = spent["epochs"] if s.head.fits or s.trainer.max_steps else max(each.trainer.max_epochs for each, _, _ in group)
        found.seconds += (
            spent["start"] + epochs * spent["epoch"] * max(1.0, len(group) / max(1, spent["heads"])) + len(group) * spent["evaluate"]
        )
        for each in told["passes"]:
            at = str(s.cache.folder() / FOLDER / Path(each["store"]).name)
            new = asked.setdefault(at, set())
            keys = set(_samples(s, source, each["split"]).sha256s()) - new
            absent = len(keys - _there(Path(at)))
            new |= keys
            found.there += len(keys) - absent
            found.passes[each["boundary"]] = found.passes.get(each["boundary"], 0) + absent
            found.bytes += absent * each["bytes"]
            found.seconds += absent * (each["seconds"] or 0.0)
    return found


def _samples(s: Settings, source: Any, split: str) -> Any:
    """The samples of a split that a run reads."""
    samples = source.split(split)
    known = labelled(s.dataset, samples) if split == "train" and not s.freeze.alone else None
    return samples if known is None else samples.take(known)


def _there(store: Path) -> set[str]:
    """The keys of a store's rows, which nobody has verified: for an estimate."""
    found: set[str] = set()
    for segment in listed(store, PUBLISHED):
        with suppress(OSError):
            names = (segment / KEYS).read_bytes()
            found.update(names[start : start + KEY].hex() for start in range(0, len(names), KEY))
    return found


def _path(s: Settings, weights: str) -> Path:
    return s.cache.folder() / "outlook" / f"{digest(question(s, weights))[:32]}.json"
