"""Rows as figures: each swept axis against the metric, and all rows of a small table one below the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from regraft.report import charts, words
from regraft.report.charts import COLOURS, Chart, Spec, bounds, legend, measured, spec_of, split_of, spread
from regraft.report.rows import Board, Estimate, Row, varying

LINES = len(COLOURS)  # that are told apart by their colours
RANKED = 40  # rows of a figure that has a line for each

Known = Sequence[tuple[Row, Estimate]]


def over(board: Board) -> Iterator[Chart]:
    """Each swept axis against the metric: a point for each row, with its interval. What differs in few other values has a line for each
    of them; else one line goes through the means over all rows of a value. Rows that lack the axis stand at its end."""
    known = measured(board)
    swept = [axis for axis in board.axes if axis not in board.chosen]
    told = varying([row for row, _ in known], swept)
    for axis in swept:
        places: dict[str, list[Any]] = {}
        for row, _ in known:
            if axis in row.values:
                places.setdefault(words.value(row.values[axis]), []).append(_place(row, row.values[axis]))
        if len(places) > 1:
            others = [other for other in told if other != axis]
            yield _axis(board, axis, known, sorted(places, key=lambda value: min(places[value])), others)


def _axis(board: Board, axis: str, known: Known, values: Sequence[str], others: Sequence[str]) -> Chart:
    every = [
        {"value": words.value(row.values.get(axis)), "row": row.name, "rest": _rest(row, others), **bounds(estimate)}
        for row, estimate in known
    ]
    points, lacking = spread(every), any(point["value"] not in values for point in every)
    rest = list(dict.fromkeys(_rest(row, others) for row, _ in sorted(known, key=lambda each: each[0].began)))  # as they were run
    joined = len(rest) <= LINES
    sort = [*values, *([words.DASH] if lacking else [])]
    look = {"axis": {"labelAngle": 0, "labelLimit": 120}, "scale": {"paddingInner": 0.4}}
    x = {"field": "value", "type": "ordinal", "sort": sort, "title": axis, **look}
    y = {"field": "mean", "type": "quantitative", "title": split_of(board), "scale": {"zero": False}}
    fields = (("row", "row"), ("mean", board.metric), ("low", "from"), ("high", "to"))
    tooltip = [{"field": name, "title": title} for name, title in fields]
    offset = {"xOffset": {"field": "rest", "type": "nominal", "sort": rest}} if len(rest) > 1 else {}
    named = {"field": "rest", "type": "nominal", "title": None, "sort": rest, "scale": {"range": list(COLOURS)}, "legend": legend(others)}
    colour: Spec = {"color": named} if joined and len(rest) > 1 else {"color": {"value": COLOURS[0]}}
    layers: list[Spec] = [
        {
            "mark": {"type": "rule", "strokeOpacity": 0.55},
            "encoding": {"x": x, **offset, "y": {**y, "field": "low"}, "y2": {"field": "high"}, **(colour if joined else {})},
            "transform": [{"filter": "isValid(datum.low)"}],
        },
        {
            "mark": {"type": "point", "filled": True, "size": 45, "opacity": 0.9},
            "encoding": {"x": x, **offset, "y": y, "tooltip": tooltip, **colour},
        },
    ]
    told = f"Each point is a row, with its 95% interval{f'; {words.DASH}: rows without {axis}' if lacking else ''}"
    if joined:
        has = [{"filter": {"field": "value", "oneOf": list(values)}}]
        line = {"mark": {"type": "line", "strokeOpacity": 0.8}, "transform": has, "encoding": {"x": x, **offset, "y": y, **colour}}
        layers.insert(0, line)
    else:
        means = [_mean(every, value) for value in values]
        dashed = {"type": "line", "strokeDash": [5, 3], "color": COLOURS[1]}
        layers.append({"data": {"values": means}, "mark": dashed, "encoding": {"x": x, "y": y}})
        told += "; the dashed line joins the means over all rows of a value"
    return Chart(f"axis-{axis}", f"{split_of(board)} over {axis}", f"{told}.{charts.drawn(len(known))}", spec_of(points, layer=layers))


def ranked(board: Board) -> Chart | None:
    """Every row with its interval, in the table's order; None: one alone, or more than can be read."""
    known = measured(board)
    if not 1 < len(known) <= RANKED:
        return None
    points = [{"row": row.name, **bounds(estimate)} for row, estimate in known]
    label = {"labelLimit": 320, "labelExpr": charts.shortened(board.axes)}
    y = {"field": "row", "type": "nominal", "sort": [row.name for row, _ in known], "title": None, "axis": label}
    x = {"field": "mean", "type": "quantitative", "title": split_of(board), "scale": {"zero": False}}
    tooltip = [{"field": each} for each in ("row", "mean", "low", "high")]
    whiskers = {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}}
    layers: list[Spec] = [
        {"mark": {"type": "rule", "strokeOpacity": 0.55}, "transform": [{"filter": "isValid(datum.low)"}], "encoding": whiskers},
        {"mark": {"type": "point", "filled": True, "size": 45, "color": COLOURS[0]}, "encoding": {"y": y, "x": x, "tooltip": tooltip}},
    ]
    told = "Each row with its 95% interval, the best on val first."
    return Chart("rows", f"{split_of(board)} of each row", told, spec_of(points, layer=layers, height=max(120, 22 * len(points))))


def _place(row: Row, value: Any) -> tuple[Any, ...]:
    """Numbers by their size; then words in the order in which they were run."""
    return (False, float(value)) if words.known(value) else (True, row.began, words.value(value))


def _rest(row: Row, axes: Sequence[str]) -> str:
    return ", ".join(f"{axis}={words.value(row.values[axis])}" for axis in axes if axis in row.values) or words.DASH


def _mean(points: Sequence[dict[str, Any]], value: str) -> dict[str, Any]:
    values = [point["mean"] for point in points if point["value"] == value]
    return {"value": value, "mean": sum(values) / len(values), "rows": len(values)}
