"""A report's tables as files: a line for each run as csv, the rows as Markdown and as LaTeX (booktabs)."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from regraft.files import whole, write_text
from regraft.report import words
from regraft.report.rows import Board, Estimate, Row, Run, differing

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what a spreadsheet might take for the beginning of one
TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {letter: f"\\{letter}" for letter in "&%$#_{}"}


def results(runs: Sequence[Run], path: Path) -> None:
    """results.csv: each run with its folder as seen from the file's, its state, the keys that differ between runs, all its metrics, and the
    command that made it."""
    metrics = sorted({name for run in runs for name in words.at(run.record, "metrics") or {}})
    keys = [
        "seed",
        *(key for key in differing(runs) if key != "seed"),
        *(key for key in ("dataset.fold", "dataset.split_seed") if _varies(runs, key)),
    ]
    head = [
        "run_id",
        "folder",
        "status",
        "dataset",
        "metric",
        *keys,
        *metrics,
        "epoch",
        "seconds",
        "devices",
        "command",
        "overrides",
        "error",
    ]
    with whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([_cell(name) for name in dict.fromkeys(head)])
        for run in runs:
            values = {
                "run_id": run.record.get("run_id"),
                "folder": Path(os.path.relpath(run.path, path.parent)).as_posix(),
                "status": run.status,
                "dataset": words.at(run.record, "data.name"),
                "metric": run.record.get("metric"),
                **{key: run.config.get(key) for key in keys},
                **(words.at(run.record, "metrics") or {}),
                "epoch": words.at(run.record, "kept.epoch"),
                "seconds": run.seconds,
                "devices": words.at(run.record, "batch.devices"),
                "command": run.record.get("command"),
                "overrides": " ".join(run.record.get("overrides") or []),
                "error": run.trouble,
            }
            table.writerow([_cell(values.get(name)) for name in dict.fromkeys(head)])


def _varies(runs: Sequence[Run], key: str) -> bool:
    return len({repr(run.config.get(key)) for run in runs}) > 1


def _cell(value: Any) -> str:
    """Text that no spreadsheet runs: what could begin a formula is quoted by an apostrophe, as spreadsheets themselves do."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = words.plain(value if isinstance(value, str) else words.value(value))
        return f"'{text}" if text.startswith(FORMULA) else text
    return repr(value)


def markdown(boards: Sequence[Board], path: Path) -> None:
    """table.md: a table for each data set and metric."""
    write_text(path, "\n".join(line for board in boards for line in _markdown(board)))


def _markdown(board: Board) -> Iterator[str]:
    yield f"## {_escaped(board.name)}\n"
    yield _verdict(board) + "\n"
    head, right = [*board.axes, "runs", f"val {board.metric}", f"test {board.metric}", "95%", *board.shifts], len(board.axes)
    yield f"| {' | '.join(map(_escaped, head))} |"
    yield f"|{'|'.join('---' if place < right else '---:' for place in range(len(head)))}|"
    for row in board.rows:
        cells = [_escaped(cell) for cell in _cells(board, row)]
        yield f"| {' | '.join(f'**{cell}**' if row is board.best else cell for cell in cells)} |"
    notes = [f"- {_escaped(warning)}" for warning in board.warnings()]
    yield "\n" + "\n".join([f"95%: {'; '.join(bases(board)) or 'none'}.", *notes]) + "\n"


def latex(boards: Sequence[Board], path: Path) -> None:
    r"""table.tex: each table as a tabular of booktabs, to be set by \input."""
    write_text(path, "\n".join(line for board in boards for line in _latex(board)))


def _latex(board: Board) -> Iterator[str]:
    head = [*board.axes, "runs", f"val {board.metric}", f"test {board.metric}", "95%", *board.shifts]
    yield f"% {words.plain(board.name)}. {_verdict(board)} 95%: {'; '.join(bases(board)) or 'none'}."
    yield rf"\begin{{tabular}}{{{'l' * len(board.axes)}{'r' * (4 + len(board.shifts))}}}"
    yield r"\toprule"
    yield " & ".join(map(tex, head)) + r" \\"
    yield r"\midrule"
    for row in board.rows:
        cells = [tex(cell) for cell in _cells(board, row)]
        yield " & ".join(rf"\textbf{{{cell}}}" if row is board.best else cell for cell in cells) + r" \\"
    yield r"\bottomrule"
    yield "\\end{tabular}\n"


def tex(text: str) -> str:
    """Text as LaTeX sets it, letter by letter."""
    return "".join(TEX.get(letter, letter) for letter in words.plain(text)).replace(words.DASH, "--")


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", words.plain(text))


def _verdict(board: Board) -> str:
    if board.best is None:
        return "Nothing could be chosen on val."
    choice = f" {board.choice}" if board.choice else ""
    less = ", where less is better" if board.lower else ""
    return f"Bold: the best on val{less}, by the mean of a row's runs; the choice was not made on test.{choice}"


def _cells(board: Board, row: Row) -> list[str]:
    values = [words.value(row.values[axis]) if axis in row.values else words.DASH for axis in board.axes]
    runs = str(len(row.done)) if row.complete else f"{len(row.done)} of {len(row.runs)}"
    val, test = board.of("val", row), board.of("test", row)
    return [*values, runs, figure(val), figure(test), interval(test), *(figure(board.of(shift, row)) for shift in board.shifts)]


def figure(estimate: Estimate | None) -> str:
    return words.DASH if estimate is None else f"{estimate.value:.3f}"


def interval(estimate: Estimate | None) -> str:
    """`.48–.53`"""
    if estimate is None or estimate.low is None or estimate.high is None:
        return words.DASH
    return f"{estimate.low:.3f}{words.DASH}{estimate.high:.3f}"


def bases(board: Board) -> list[str]:
    """What the intervals of its rows rest on, each once."""
    found = [estimate.how for row in board.rows if (estimate := board.of("test", row) or board.of("val", row))]
    return sorted(set(found))
