"""What a sweep is to run: sweep.json in its folder, which every command that runs some of it adds to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft import files
from regraft.errors import Problem, UserError
from regraft.locks import Lock

SCHEMA = 1
NAME = "sweep.json"
LOCK, WORK = ".sweep.lock", ".sweep"  # held by who writes it; shared by all commands that run some of the sweep
BOUND = 256 << 20  # bytes of a manifest that is still read


@dataclass(frozen=True)
class Entry:
    """A run that a sweep holds, whether it has been begun or not."""

    run_id: str
    folder: str  # relative to the sweep's
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """All that the commands of a sweep wanted to run."""

    commands: tuple[str, ...] = ()
    runs: tuple[Entry, ...] = ()
    trials: int | None = None  # how many a search wants in all; None: it is none


def note(sweep: Path, command: str, runs: Sequence[tuple[str, Path, Sequence[str]]], trials: int | None = None) -> None:
    """Add a command and its runs, as (run id, folder, overrides), to what earlier commands have left in the sweep's folder.

    Two that do so at once wait for each other. `trials`: how many a search wants; None: as it was before. A manifest that can't be read
    is written anew: the run folders are what counts. Raises UserError for a folder that can't be made.
    """
    with _lock(sweep, LOCK, alone=True):
        try:
            before = read(sweep)
        except UserError:
            before = Manifest()
        mine = {run_id: Entry(run_id, os.path.relpath(folder, sweep), tuple(overrides)) for run_id, folder, overrides in runs}
        entries = {entry.run_id: entry for entry in before.runs} | mine
        commands = tuple(dict.fromkeys([*before.commands, command]))
        whole = Manifest(commands, tuple(entries.values()), before.trials if trials is None else trials)
        if whole != before:
            plain = [{"run_id": each.run_id, "folder": each.folder, "overrides": list(each.overrides)} for each in whole.runs]
            files.write_json(sweep / NAME, {"schema": SCHEMA, "commands": list(commands), "runs": plain, "trials": whole.trials})


def read(sweep: Path) -> Manifest:
    """What the sweep's folder says; nothing where there is no manifest. Raises UserError for one that can't be read."""
    path = sweep / NAME
    if not path.is_file():
        return Manifest()
    try:
        if path.stat().st_size > BOUND:
            raise ValueError(f"larger than {BOUND >> 20} MB, which no sweep writes")
        told = json.loads(path.read_text(encoding="utf-8"))
        if told.get("schema") != SCHEMA:
            raise ValueError(f"this regraft reads manifests of schema {SCHEMA}")
        trials = told["trials"]
        if not (trials is None or type(trials) is int):
            raise ValueError("trials is no whole number")
        return Manifest(tuple(map(str, told["commands"])), tuple(map(_entry, told["runs"])), trials)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(Problem(str(path), None, f"can't be read ({next(iter(str(error).splitlines()), type(error).__name__)})")) from None


def _entry(told: Mapping[str, Any]) -> Entry:
    if not all(isinstance(told[key], str) for key in ("run_id", "folder")):
        raise ValueError("a run's id and folder are words")
    return Entry(told["run_id"], told["folder"], tuple(map(str, told["overrides"])))


def working(sweep: Path) -> Lock:
    """Held by a command for as long as it runs some of the sweep; several may. Raises UserError where the folder can't be made."""
    return _lock(sweep, WORK, alone=False)


def _lock(sweep: Path, name: str, *, alone: bool) -> Lock:
    try:
        sweep.mkdir(parents=True, exist_ok=True)
        return Lock(sweep / name, alone=alone)
    except OSError as error:
        raise UserError(Problem("hydra.sweep.dir", str(sweep), f"can't be used ({error.strerror}); name another folder")) from None
