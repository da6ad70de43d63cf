"""Figures and words of a record as text, and the shapes that they stand in; what is not known is a dash.

All text that comes from files (class names, file names, messages) goes through `plain`: no control characters.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from regraft.report.statistics import wilson

WIDTH = 100  # columns, at most
DASH = "–"  # stands where there is no figure


def plain(text: object, most: int = 10_000) -> str:
    """Strangers' text on one line: what is not printable is shown escaped, and what is too long ends in an ellipsis."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)[: most + 1])
    return shown if len(shown) <= most else shown[: most - 1].rstrip() + "…"


def metric(record: Mapping[str, Any]) -> str:
    """The name of the task's first metric."""
    return str(record.get("metric", "accuracy"))


def at(mapping: Any, dotted: str) -> Any:
    """The value at `optimizer.lr`; None where any of the keys is missing."""
    for key in dotted.split("."):
        mapping = mapping.get(key) if isinstance(mapping, Mapping) else None
    return mapping


def known(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value  # NaN is no figure


def thing(enters: str | None) -> str:
    """What a sample is called of which `enters` a net; None: an older record, which says nothing of it."""
    return "picture" if enters in (None, "pictures") else "sample"


def figure(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, float) or known(value) else DASH


def accuracy(record: Mapping[str, Any], split: str) -> tuple[str, str]:
    """A split's accuracy and its 95% interval, of the split's size; another first metric without one."""
    value, n = at(record, f"metrics.{split}/{metric(record)}"), at(record, f"data.sizes.{split}")
    if not (metric(record) == "accuracy" and known(value) and 0 <= value <= 1 and known(n) and n > 0):
        return figure(value, ".3f"), DASH
    low, high = wilson(round(value * n), n)
    return f"{value:.3f}", f"{low:.3f}{DASH}{high:.3f}"


def count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def many(n: int) -> str:
    """`3.4 M`"""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return str(n)


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def roughly(seconds: float) -> str:
    """`40 s`, `3 min`, `2.5 h`: no more than an estimate tells."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def status(record: Mapping[str, Any]) -> str:
    """A record's status in one word; `interrupted` where its worker was ended from outside."""
    told = plain(record.get("status", DASH), 12)
    return "interrupted" if told == "running" and record.get("error") else told


def error(record: Mapping[str, Any]) -> str:
    kind, message, rank = (at(record, f"error.{key}") for key in ("kind", "message", "rank"))
    told = str(message or "").removeprefix(f"{kind}: ")
    where = f" (rank {rank})" if rank else ""
    return f"{kind or 'no error is recorded'}{where}{f': {told}' if told else ''}"


def value(value: Any) -> str:
    """A config value as one would write it; a group's section by the name of its entry."""
    if isinstance(value, Mapping) and "name" in value:
        value = value["name"]
    if value is None:
        return DASH
    if isinstance(value, list):
        return plain(f"[{','.join(map(_item, value))}]", 40)
    return plain(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 40)


def _item(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def first(message: object) -> str:
    return next(iter(str(message).splitlines()), "")


def shorter(path: Path) -> str:
    """The path as seen from the working folder, where that is shorter."""
    try:
        return min(os.path.relpath(path), str(path), key=len)
    except (OSError, ValueError):  # the working folder is gone, or on another drive
        return str(path)


@dataclass(frozen=True)
class Fitting:
    """A table, or the same as lines where there is no room for it: a figure is never cut."""

    wide: Table
    lines: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = Measurement.get(console, options.update_width(10 * WIDTH), self.wide).maximum
        yield self.wide if needed <= options.max_width else self.lines


def table(footer: bool = False) -> Table:
    return Table(box=box.SIMPLE_HEAD, show_footer=footer, footer_style="", pad_edge=False, padding=(0, 1))


def listing(facts: Sequence[tuple[str, str]]) -> Table:
    """Labelled lines; a label that repeats is said once."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    before = None
    for label, text in facts:
        shown = Text("\n".join(plain(line) for line in text.splitlines()))
        grid.add_row("" if label == before else label, shown)
        before = label
    return grid
