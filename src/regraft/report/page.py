"""One page to look at: a report's tables and figures as a single HTML file that asks nobody for anything.

All text that comes from files is escaped by the template, or lies in the page as JSON in which no tag can begin; a policy in the page's
head lets it load nothing from elsewhere.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from regraft import files
from regraft.report import answered, axes, charts, exports, robust, words
from regraft.report.answered import Answers
from regraft.report.rows import Board, Row, Run

HARD = 24  # pictures that are shown
RECORDS = 3  # records that are shown whole: of the best rows
COMMANDS = 50
SHIFTS = 4  # columns of shifts that are shown before they are asked for
ACROSS = (
    "The interquartile mean of all runs' figures on test, of rows that every data set has; its 95% interval draws seeds anew within each"
    " data set (Agarwal et al. 2021). It is no ranking on any one of them."
)
Thumbnails = Callable[[Run, Sequence[str]], Mapping[str, bytes]]  # (a run, pictures' ids) -> JPEG files, of those that can be read


@dataclass(frozen=True)
class Part:
    """A board and all that is drawn of it."""

    board: Board
    charts: tuple[charts.Chart, ...]
    versus: tuple[answered.Versus, ...]
    hard: tuple[answered.Hard, ...]
    read: int  # runs whose answers were counted for `hard`

    @classmethod
    def of(cls, board: Board) -> Part:
        hard, read = answered.hardest(board, HARD)
        return cls(board, tuple(_charts(board)), tuple(answered.against_best(board)), tuple(hard), read)


def _charts(board: Board) -> Iterator[charts.Chart]:
    yield from axes.over(board)
    best = Answers.read(board.best) if board.best else Answers(())
    for found in (axes.ranked(board), robust.chart(board), charts.parallel(board), charts.cost(board), *charts.curves(board)):
        if found:
            yield found
    for drawn in (charts.confusion(best), charts.reliability(best), charts.classes(best)) if best.runs else ():
        if drawn:
            assert board.best
            yield charts.Chart(drawn.name, drawn.title, f"{drawn.caption} Of the best on val: {board.best.name}.", drawn.spec)


def write(
    path: Path,
    title: str,
    command: str,
    runs: Sequence[Run],
    parts: Sequence[Part],
    across: Sequence[answered.Across],
    thumbnails: Thumbnails,
) -> None:
    """The page, written whole."""
    drawn = [chart for part in parts for chart in part.charts]
    place = {id(chart): at for at, chart in enumerate(drawn)}
    shown = [_board(part, f"board-{at}", place, thumbnails) for at, part in enumerate(parts)]
    data = {"charts": [chart.spec for chart in drawn], "boards": [_rows(part, path.parent) for part in parts]}
    best = [run for part in parts if part.board.best for run in part.board.best.done][:RECORDS]
    commands = list(dict.fromkeys(str(run.record.get("command", "")) for run in runs if run.record.get("command")))
    told = "The commands that made these runs; each row above opens on its runs, with their overrides and a link to their folder."
    if len(commands) > COMMANDS:
        told += f" The first {COMMANDS} of {len(commands):,}; results.csv has them all."
    text = _template().render(
        title=title,
        command=command,
        counts=_counts(runs, parts),
        boards=shown,
        across=[_across(each) for each in across],
        across_told=ACROSS,
        failed=_failed(runs),
        runs_told=told,
        commands=[words.plain(each) for each in commands[:COMMANDS]],
        records=[
            {"name": str(run.record.get("run_id")), "text": json.dumps(dict(run.record), indent=1, ensure_ascii=False)} for run in best
        ],
        data=Markup(_json(data)),
        css=Markup(_asset("page.css")),
        script=Markup(_asset("page.js")),
        library=Markup(_library()),
    )
    files.write_text(path, text)


def _template() -> jinja2.Template:
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_asset("page.html"))


def _asset(name: str) -> str:
    return (resources.files("regraft.report") / "html" / name).read_text("utf-8")


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, in which no tag ends."""
    import vl_convert

    names = "window.vega = vega; window.vegaLite = vegaLite; window.vegaEmbed = vegaEmbed;"
    return vl_convert.javascript_bundle(names).replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _json(value: Any) -> str:
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return (
        text.replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def _finite(value: Any) -> Any:
    """Without what JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))) else value


def _counts(runs: Sequence[Run], parts: Sequence[Part]) -> str:
    states: dict[str, int] = {}
    for run in runs:
        states[run.status] = states.get(run.status, 0) + 1
    rows = sum(len(part.board.rows) for part in parts)
    return f"{words.count(len(runs), 'run')} in {words.count(rows, 'row')}: {', '.join(f'{n:,} {state}' for state, n in states.items())}."


def _board(part: Part, place: str, charts_at: Mapping[int, int], thumbnails: Thumbnails) -> dict[str, Any]:
    board = part.board
    pictures: Mapping[str, bytes] = {}
    if part.hard and board.best:
        pictures = thumbnails(board.best.done[0], [hard.name for hard in part.hard])
    unseen = "" if pictures else "; their data set is not here to show them"
    return {
        "id": place,
        "name": board.name,
        "verdict": _verdict(board),
        "warnings": [*([board.choice] if board.choice else []), *board.warnings()],
        "versus": [_versus(each) for each in part.versus],
        "versus_told": _tested(part),
        "charts": [{"title": each.title, "caption": each.caption, "place": charts_at[id(each)]} for each in part.charts],
        "hard": [_hard(each, pictures) for each in part.hard],
        "hard_told": f"Of test's pictures, over {words.count(part.read, 'run')}{unseen}.",
    }


def _verdict(board: Board) -> str:
    if board.best is None:
        return "No row was chosen: val has measured none of which all runs are done."
    val, test = board.of("val", board.best), board.of("test", board.best)
    said = f"Chosen on val{' (less is better)' if board.lower else ''}: {board.best.name}; val {exports.figure(val)}"
    if test is None:
        return f"{said}, not tested."
    span = f" ({exports.interval(test)}; {test.how})" if test.low is not None else f" ({test.how})"
    return f"{said}, test {exports.figure(test)}{span}."


def _tested(part: Part) -> str:
    tested = len(part.versus)
    left = len([row for row in part.board.rows if row.done]) - 1 - tested
    told = (
        "How far the best on val is above each row on the test pictures that both answered. The interval draws seeds and pictures anew;"
        " p is over pictures, for these runs as they are, and by Holm for all these tests together."
    )
    return told + (f" {words.count(left, 'row')} below are not tested." if left > 0 else "")


def _versus(each: answered.Versus) -> dict[str, str]:
    return {
        "row": each.row,
        "pictures": f"{each.pictures:,}",
        "difference": f"{each.difference:+.3f}",
        "interval": f"{each.low:+.3f} to {each.high:+.3f}",
        "p": _p(each.p),
        "adjusted": _p(each.adjusted),
        "effect": words.figure(each.effect, ".2f") if words.known(each.effect) else words.DASH,
        "test": each.test,
    }


def _across(each: answered.Across) -> dict[str, Any]:
    found = each.found
    span = f"{found.low:.3f}{words.DASH}{found.high:.3f}"
    return {"name": each.name, "sets": each.sets, "runs": each.runs, "value": f"{found.value:.3f}", "interval": span}


def _p(p: float) -> str:
    return "< .0001" if p < 0.0001 else f"{p:.4f}"


def _hard(each: answered.Hard, pictures: Mapping[str, bytes]) -> dict[str, Any]:
    data = pictures.get(each.name)
    source = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" if data else ""
    said = {"name": each.name, "truth": each.truth, "said": each.said}
    return {**{key: words.plain(text, 80) for key, text in said.items()}, "wrong": each.wrong, "asked": each.asked, "picture": source}


def _failed(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One cause is told once, however many runs it stopped."""
    alike: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.trouble:
            alike.setdefault((run.status, run.trouble), []).append(run)
    return [
        {
            "status": status,
            "what": words.plain(" ".join(who[0].record.get("overrides") or [who[0].path.name]), 200),
            "others": len(who) - 1,
            "trouble": trouble,
            "command": words.plain(who[0].record.get("command", who[0].path)),
        }
        for (status, trouble), who in alike.items()
    ]


# The leaderboard, as the page's script has it


def _rows(part: Part, beside: Path) -> dict[str, Any]:
    board = part.board
    adjusted = {each.row: each.adjusted for each in part.versus}
    measured = {name for row in board.rows for run in row.done[:1] for name in words.at(run.record, "metrics") or {}}
    shifts = [f"{shift}/{board.metric}" for shift in board.shifts]
    strengths = [f"{split}/{board.metric}" for split in board.strengths if split not in board.shifts]
    others = [*strengths, *sorted(name for name in measured if name.startswith("test/") and name != f"test/{board.metric}")]
    more = [*shifts, *others]
    hidden = [key for key in dict.fromkeys(key for row in board.rows for key in row.values) if key not in board.axes]
    columns = [
        *({"title": axis, "axis": True, "shown": True, "number": False} for axis in board.axes or ("row",)),
        _column("runs", shown=True),
        *(_column(f"{split} {board.metric}", shown=True, digits=3) for split in ("val", "test")),
        {"title": "95% of test", "axis": False, "shown": True, "number": False},
        _column("p against the best (Holm)", shown=bool(adjusted), digits=4),
        _column("seconds", shown=True, digits=1),
        *(_column(title) for title in ("sd over runs, val", "sd over runs, test", "low of test", "high of test", "parameters that train")),
        {"title": "interval rests on", "axis": False, "shown": False, "number": False},
        *(_column(name, shown=name in shifts and len(shifts) <= SHIFTS, digits=3) for name in more),
        *({"title": key, "axis": True, "shown": False, "number": False} for key in hidden),
    ]
    return {
        "name": board.name,
        "marked": board.best is not None,
        "columns": columns,
        "rows": [_line(board, row, adjusted, more, hidden, beside) for row in board.rows],
    }


def _column(title: str, shown: bool = False, digits: int | None = None) -> dict[str, Any]:
    """Of numbers, with so many digits behind the point."""
    return {"title": title, "axis": False, "shown": shown, "number": True} | ({} if digits is None else {"digits": digits})


def _line(
    board: Board, row: Row, adjusted: Mapping[str, float], more: Sequence[str], hidden: Sequence[str], beside: Path
) -> dict[str, Any]:
    val, test = board.of("val", row), board.of("test", row)
    others = [found.value if (found := row.estimate(name)) else None for name in more]
    cells = [
        *([words.value(row.values.get(axis)) for axis in board.axes] or [row.name]),
        len(row.done) if row.complete else f"{len(row.done)} of {len(row.runs)}",
        *(_digits(each and each.value) for each in (val, test)),
        exports.interval(test),
        _digits(adjusted.get(row.name)),
        _digits(row.mean("seconds")),
        *(_digits(each and each.spread) for each in (val, test)),
        *(_digits(test and bound) for bound in ((test.low, test.high) if test else (None, None))),
        row.mean("parameters"),
        test.how if test else None,
        *map(_digits, others),
        *(words.value(row.values.get(key)) for key in hidden),
    ]
    return {"name": row.name, "best": row is board.best, "cells": cells, "runs": [_run(board, run, beside) for run in row.runs]}


def _run(board: Board, run: Run, beside: Path) -> list[Any]:
    values = [_digits(run.metric(f"{split}/{board.metric}")) for split in ("val", "test")]
    overrides = words.plain(" ".join(run.record.get("overrides") or []), 600)
    return [run.record.get("run_id"), run.config.get("seed"), run.status, *values, _digits(run.seconds), _link(run.path, beside), overrides]


def _link(path: Path, beside: Path) -> str:
    """From the page to a run's folder: a way through folders, never a scheme of its own."""
    return f"./{quote(os.path.relpath(path, beside).replace(os.sep, '/'))}/"


def _digits(value: float | None) -> float | None:
    """As many digits as a reader wants: the page stays small."""
    return None if value is None else float(f"{value:.5g}")
