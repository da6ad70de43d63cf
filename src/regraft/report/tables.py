"""A run's numbers as rich tables: what is going to train, and what came out of one run.

All text that comes from files (class names, file names, messages) goes through `plain` into rich's Text: no markup, no control characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

from regraft.record import RunFolder
from regraft.report import words

PHASES = 3  # that stand side by side in one table
LISTED = 5  # skipped pictures that are named
EACH = 10  # classes that are told of one by one
SPLITS = ("train", "val", "test")
PICTURES = ("curves.png", "confusion.png", "mistakes.png", "boxes.png", "lines.png", "roll.png", "looks.png", "filters.png", "dreams.png")


def stages(phases: Sequence[Mapping[str, Any]]) -> RenderableType:
    """What each phase trains, stage by stage, before training starts. Phases: {"name", "epochs", "rows": [{"stage", "parameters",
    "trains", "mode", "lr", "output"}]}; the rows of all phases are the same stages."""
    chunks = [phases[at : at + PHASES] for at in range(0, len(phases), PHASES)]
    return Constrain(Group(*(_stages(chunk) for chunk in chunks)), words.WIDTH)


def result(folder: RunFolder) -> RenderableType:
    """What came out of one run, from its record alone. Raises UserError for a folder without a record that can be read."""
    record = folder.record
    parts: list[RenderableType] = (
        [words.Fitting(_splits(record), words.listing(_split_lines(record)))] if words.at(record, "metrics") else []
    )
    facts = [("status", _status(record)), *_facts(record), ("folder", words.shorter(folder.path))]
    facts += [("", words.shorter(folder / name)) for name in PICTURES if (folder / name).is_file()]
    return Constrain(Group(*parts, words.listing(facts)), words.WIDTH)


# Before training


def _stages(phases: Sequence[Mapping[str, Any]]) -> Table:
    table = words.table(footer=True)
    table.add_column("stage", footer="total", overflow="fold")
    table.add_column("output", justify="right")
    table.add_column("parameters", justify="right", footer=f"{_parameters(phases[0]['rows']):,}")
    for phase in phases:
        epochs = phase.get("epochs")
        title = Text(words.plain(phase.get("name", ""), 24)).append(f"\n{words.count(epochs, 'epoch')}" if epochs else "", "not bold")
        training = sum(row.get("training", row["parameters"]) for row in phase["rows"] if row.get("trains"))
        table.add_column(title, footer=f"{training:,} train", overflow="fold")
    for rows in zip(*(phase["rows"] for phase in phases), strict=True):
        shape = " x ".join(map(str, rows[0].get("output") or [])) or words.DASH
        cells = [words.plain(rows[0]["stage"], 40), shape, f"{rows[0]['parameters']:,}", *map(_treatment, rows)]
        table.add_row(*map(Text, cells), style=None if any(row.get("trains") for row in rows) else "dim")
    return table


def _treatment(row: Mapping[str, Any]) -> str:
    """What a phase does with a stage; the mode is told where it is not the one to expect."""
    if not row.get("trains"):
        return "frozen, in train mode" if row.get("mode") == "train" else "frozen, eval"
    if not row.get("parameters"):
        return words.DASH
    rate = "" if row.get("lr") is None else f" lr {row['lr']:.4g}"
    part = row.get("training", row["parameters"])
    some = "" if part == row["parameters"] else f" {part:,} of them"
    return f"train{some}{rate}{', in eval mode' if row.get('mode') == 'eval' else ''}"


def _parameters(rows: Iterable[Mapping[str, Any]]) -> int:
    return sum(row["parameters"] for row in rows)


# After one run


def splits(record: Mapping[str, Any]) -> list[str]:
    """Train, val and test, and the shifts of test that were measured too."""
    return list(dict.fromkeys((*SPLITS, *(words.at(record, "data.sizes") or {}))))


def _splits(record: Mapping[str, Any]) -> Table:
    table = words.table()
    table.add_column("")
    for name in (words.metric(record), "95% interval", f"{_thing(record)}s", "loss"):
        table.add_column(name, justify="right")
    for split in splits(record):
        size = words.figure(words.at(record, f"data.sizes.{split}"), ",")
        loss = words.figure(words.at(record, f"metrics.{split}/loss"), ".3f")
        table.add_row(words.plain(split, 40), *words.accuracy(record, split), size, loss, style="bold" if split == "test" else None)
    return table


def _thing(record: Mapping[str, Any]) -> str:
    return words.thing(words.at(record, "data.input.kind"))


def _split_lines(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same, for narrow terminals."""
    lines = []
    for split in splits(record):
        value, interval = words.accuracy(record, split)
        size, loss = (
            words.figure(words.at(record, f"data.sizes.{split}"), ","),
            words.figure(words.at(record, f"metrics.{split}/loss"), ".3f"),
        )
        lines.append((words.plain(split, 40), f"{value} ({interval}), {size} {_thing(record)}s, loss {loss}"))
    return lines


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The lines below the table, each with its label; what the record does not hold is left out."""
    facts = [("frozen", text) for text in _frozen(record)]
    facts += [("cache", text) for text in _cache(record)]
    facts += [("test", text) for text in _others(record)]
    facts += [("kept", text) for text in _kept(record)]
    facts += [("tuned", text) for text in _tuned(record)]
    facts += [("time", text) for text in _times(record)]
    facts += [("skipped", text) for text in _skipped(record)]
    facts += [("warning", str(text)) for text in record.get("warnings") or []]
    return facts


def _others(record: Mapping[str, Any]) -> list[str]:
    """What else was measured on test; and the error that the field knows the net by, beside the one that was reported for it."""
    found = {name.partition("/")[2]: value for name, value in (record.get("metrics") or {}).items() if name.startswith("test/")}
    told = [f"{name.replace('_', ' ')} {value:.3f}" for name, value in sorted(found.items()) if name not in (words.metric(record), "loss")]
    lines = [", ".join(told)] if told else []
    details, first = record.get("details") or {}, words.metric(record)
    each = [f"{words.plain(name, 24)} {figures[first]:.3f}" for name, figures in details.items() if words.known(figures.get(first))]
    lines += [f"each class: {', '.join(each)}"] if each and len(details) <= EACH else []
    reported = record.get("reported")
    if reported and "top5_accuracy" in found:
        lines.append(
            f"top-5 error {1 - found['top5_accuracy']:.1%}, reported {reported['top5_error']:.1%} ({words.plain(reported['source'], 200)})"
        )
    return lines


def _status(record: Mapping[str, Any]) -> str:
    status = words.status(record)
    if status in ("failed", "interrupted"):
        return f"{status}: {words.error(record)}"
    told = {"running": "running, or interrupted: there is no result yet", "pruned": "pruned: others did better; not measured on test"}
    return told.get(status, status)


def _frozen(record: Mapping[str, Any]) -> list[str]:
    phases = record.get("phases") or []
    told = []
    for phase in phases:
        name = f"{phase.get('name', words.DASH)}: " if len(phases) > 1 else ""
        rows = phase.get("stages")
        if rows and any(row.get("training", row["parameters"]) < row["parameters"] for row in rows if row.get("trains")):
            count = sum(row.get("training", 0) for row in rows)
            told.append(f"{name}all but {count:,} of {_parameters(rows):,} parameters")
        elif rows:
            told.append(name + _stretch([row for row in rows if not row.get("trains")]))
        elif "boundary" in phase:
            told.append(f"{name}what lies below {phase['boundary']}")
    return told


def _stretch(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "nothing, every stage trains"
    names = [str(row.get("stage", words.DASH)) for row in rows]
    return f"{names[0]} to {names[-1]}, {_extent(rows)}" if len(rows) > 1 else f"{names[0]}, {_extent(rows)}"


def _extent(rows: Sequence[Mapping[str, Any]]) -> str:
    """`12 stages (3.4 M parameters)`"""
    counted = all("parameters" in row for row in rows)
    return words.count(len(rows), "stage") + (f" ({words.many(_parameters(rows))} parameters)" if counted else "")


def _cache(record: Mapping[str, Any]) -> list[str]:
    """What ran once, what was read, and what ran live and why: a line for each boundary and each reason."""
    notes = record.get("cache") or []
    told = []
    cached = sorted((note for note in notes if note.get("mode") == "cached"), key=lambda note: str(note.get("boundary")))
    for boundary, group in groupby(cached, key=lambda note: str(note.get("boundary"))):
        entries = list(group)
        computed, rows = (sum(entry.get(key, 0) for entry in entries) for key in ("computed", "rows"))
        several = len({entry.get("view") for entry in entries}) > 1
        what = ("views of " if several else "") + f"{_thing(record)}s"
        if computed:
            seconds = sum(entry.get("seconds", 0) for entry in entries)
            told.append(f"{computed:,} {what} ran once through {_below(record, boundary)} in {words.duration(seconds)}")
        if rows > computed:
            told.append(f"read from the cache: {rows - computed:,} {what} at {boundary}")
    reasons: dict[str, list[str]] = {}  # why -> the phases (or splits) that ran live
    for note in notes:
        if note.get("mode") == "live":
            phases = reasons.setdefault(str(note.get("why", "no reason is recorded")), [])
            name = str(note.get("phase", note.get("split", words.DASH)))
            if name not in phases:
                phases.append(name)
    everything = "everything" if not cached and len(reasons) == 1 else None
    return told + [f"{everything or ', '.join(phases)} ran live: {why}" for why, phases in reasons.items()]


def _below(record: Mapping[str, Any], boundary: str) -> str:
    """The stages that a boundary leaves below it, where the record lists them."""
    rows: list[dict[str, Any]] = next((phase["stages"] for phase in record.get("phases") or [] if phase.get("stages")), [])
    names = [row.get("stage") for row in rows]
    if boundary not in names:
        return f"all below {boundary}"
    return _extent(rows[: names.index(boundary)])


def _kept(record: Mapping[str, Any]) -> list[str]:
    epoch = words.at(record, "kept.epoch")
    if not words.known(epoch):
        return []
    if solved := words.at(record, "fit"):
        return [_solved(record, solved)]
    if epoch < 0:
        return ["the net as it was: nothing trained"]
    phases = record.get("phases") or []
    epochs = [phase.get("epochs") for phase in phases]
    span = f" of 0{words.DASH}{sum(epochs) - 1}" if epochs and all(map(words.known, epochs)) and sum(epochs) > 1 else ""
    value, monitor = words.at(record, "kept.value"), words.at(record, "kept.monitor")
    return [f"epoch {epoch}{span}{f' ({monitor} {value:.3f})' if words.known(value) and monitor else ''}"]


def _solved(record: Mapping[str, Any], fit: Mapping[str, Any]) -> str:
    """`a head of penalty 10, of 17 tried on val`, or on folds of train"""
    chosen = next((f"{name} {fit[name]:.4g}" for name in ("penalty", "k", "depth") if words.known(fit.get(name))), "")
    tried = fit.get("tried") or []
    some = f", of {len(tried)} tried on {'folds of train' if tried and 'folds' in tried[0] else 'val'}" if len(tried) > 1 else ""
    return f"the head that was solved for{f': {chosen}{some}' if chosen else ''}"


def _tuned(record: Mapping[str, Any]) -> list[str]:
    """What each phase was computed in, where that was measured, with the seconds of a step."""
    told = []
    for each in record.get("tuning") or []:
        rows = [row for row in each["measured"] if words.known(row["seconds"])]
        shown = ", ".join(
            f"{row['precision']} {row['memory_format']}{' compiled' if row['compile'] else ''} {row['seconds']:.3f} s" for row in rows
        )
        chosen = each["choice"]
        told.append(f"{words.plain(each['phase'])}: {chosen['precision']} {chosen['memory_format']}, the fastest of {shown}")
    return told


def _times(record: Mapping[str, Any]) -> list[str]:
    times = {name: words.at(record, f"times.{name}") for name in ("total", "start", "frozen", "train", "evaluate")}
    named = {"start": "start-up", "frozen": "frozen part", "train": "training", "evaluate": "evaluation"}
    parts = ", ".join(f"{words.duration(times[name])} {word}" for name, word in named.items() if words.known(times[name]))
    whole = f"{words.duration(times['total'])} in all" if words.known(times["total"]) else ""
    size, share = words.at(record, "group.size"), words.at(record, "times.share")
    if whole and words.known(size) and words.known(share):
        whole += f" with {words.count(size - 1, 'other run')}, of which {words.duration(share)} for this one"
    return [": ".join(filter(None, (whole, parts)))] if whole or parts else []


def _skipped(record: Mapping[str, Any]) -> list[str]:
    skipped = words.at(record, "data.skipped") or []
    if not skipped:
        return []
    named = [f"{words.plain(each.get('file', words.DASH))}: {words.plain(each.get('problem', words.DASH))}" for each in skipped[:LISTED]]
    more = [f"and {len(skipped) - LISTED:,} more, listed in record.json"] if len(skipped) > LISTED else []
    return [words.count(len(skipped), "picture"), *named, *more]
