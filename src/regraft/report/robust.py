"""How the best rows hold where test is made worse, or is another folder's: a figure over all shifts."""

from __future__ import annotations

from typing import Any

from regraft.report.charts import COLOURS, CURVES, Chart, bounds, legend, spec_of
from regraft.report.rows import Board, gathered


def chart(board: Board) -> Chart | None:
    """The metric on test and under each shift, a line for each row; None: no shift was measured."""
    order = ["test", *board.strengths]
    if len(order) < 2:
        return None
    points: list[dict[str, Any]] = []
    chosen = [row for row in board.rows if row.done][:CURVES]
    for row in chosen:
        for split in order:
            if estimate := board.of(split, row):
                kind = gathered(f"{split}/{board.metric}").partition("/")[0]
                points.append({"row": row.name, "split": split, "kind": kind, **bounds(estimate)})
    x = {"field": "split", "type": "ordinal", "sort": order, "title": None, "axis": {"labelAngle": -45, "labelLimit": 120}}
    y = {"field": "mean", "type": "quantitative", "title": board.metric, "scale": {"zero": False}}
    names = {"sort": [row.name for row in chosen], "scale": {"range": list(COLOURS)}}
    colour = {"field": "row", "type": "nominal", "title": None, "legend": legend(board.axes), **names}
    offset = {"xOffset": {"field": "row", "type": "nominal", "sort": names["sort"]}} if len(chosen) > 1 else {}
    tooltip = [{"field": each} for each in ("row", "split", "mean", "low", "high")]
    layers = [
        {
            "mark": {"type": "rule", "strokeOpacity": 0.4},
            "transform": [{"filter": "isValid(datum.low)"}],
            "encoding": {"x": x, **offset, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour},
        },
        {
            "mark": {"type": "line", "point": True},
            "encoding": {"x": x, **offset, "y": y, "color": colour, "detail": {"field": "kind"}, "tooltip": tooltip},
        },
    ]
    told = "Each row's mean over its runs with its 95% interval; a line joins the strengths of one corruption."
    return Chart("shifts", f"{board.metric} on test and under each shift", told, spec_of(points, layer=layers))
