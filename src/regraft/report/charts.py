"""A report's figures, as Vega-Lite: the page draws them, and vl-convert writes the same ones as PNG and PDF."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regraft.record import METRICS, Metrics
from regraft.report import answered, words
from regraft.report.answered import Answers
from regraft.report.rows import Board, Estimate, Row, varying

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8c8c8c",
    "#B8A800",
)  # Okabe and Ito's, but for what would vanish on black or white
RAMP = "viridis"
CURVES = 8  # rows that have learning curves
DRAWN = 400  # rows in a figure; of more, every so manieth of the table
CLASSES = 40  # sides of a confusion matrix
LETTERS = 40  # of a label
BINS = 15  # of a reliability diagram (Guo et al. 2017, ICML, section 2)
WIDTH, HEIGHT = 620, 320  # px, of what is written; the page has its own width

Spec = dict[str, Any]
BELOW: Spec = {"orient": "bottom", "gradientLength": 160}  # a colour's legend


@dataclass(frozen=True)
class Chart:
    """A figure: its file's name, what it shows, how to read it, and the Vega-Lite spec."""

    name: str
    title: str
    caption: str
    spec: Spec


def parallel(board: Board) -> Chart | None:
    """Parallel coordinates: a line for each row through the values of its axes, coloured by the metric; None: fewer than two axes."""
    rows = spread(measured(board))
    used = varying([row for row, _ in rows], board.axes)
    if len(used) < 2:
        return None
    points, ticks = [], []
    for axis in used:
        values = sorted({(order(row.values.get(axis)), words.value(row.values.get(axis))) for row, _ in rows})
        height = {value: (place + 0.5) / len(values) for place, (_, value) in enumerate(values)}
        ticks += [{"axis": axis, "height": at, "label": words.plain(value, 16)} for value, at in height.items()]
        apart = 0.5 / len(values) / len(rows)  # else rows of the same values hide each other
        points += [
            {
                "row": row.name,
                "axis": axis,
                "height": height[words.value(row.values.get(axis))] + (place - len(rows) / 2) * apart,
                "mean": estimate.value,
            }
            for place, (row, estimate) in enumerate(rows)
        ]
    below = {"labelAngle": 0, "labelLimit": {"expr": f"width / {len(used)}"}, "labelExpr": shortened(used), "domain": False}
    x = {"field": "axis", "type": "ordinal", "sort": used, "title": None, "axis": below}
    y = {"field": "height", "type": "quantitative", "axis": None, "scale": {"domain": [0, 1]}}
    colour = {
        "field": "mean",
        "type": "quantitative",
        "title": board.metric,
        "scale": {"scheme": RAMP, "reverse": board.lower, "zero": False},
    }
    layers: list[Spec] = [
        {
            "mark": {"type": "line", "strokeWidth": 1.6, "strokeOpacity": 0.75},
            "encoding": {
                "x": x,
                "y": y,
                "detail": {"field": "row"},
                "color": colour,
                "tooltip": [{"field": "row"}, {"field": "mean", "title": board.metric}],
            },
        },
        {
            "data": {"values": ticks},
            "mark": {"type": "text", "align": "left", "dx": 6, "fontSize": 11},
            "encoding": {"x": x, "y": y, "text": {"field": "label"}},
        },
    ]
    return Chart(
        "parallel",
        "Parallel coordinates",
        f"Each line is a row, through its value of each axis; colour: {split_of(board)}.{drawn(len(board.rows))}",
        spec_of(points, layer=layers),
    )


def cost(board: Board) -> Chart | None:
    """Seconds of a run against the metric, with the front of rows that nothing faster beats; None: fewer than two rows have both."""
    points = [
        {"row": row.name, "seconds": seconds, **bounds(estimate)}
        for row, estimate in measured(board)
        if (seconds := row.mean("seconds")) and seconds > 0
    ]
    if len(points) < 2:
        return None
    for point in front(points, board.lower):
        point["front"] = True
    points = [point for point in points if point.get("front")] + [point for point in spread(points) if not point.get("front")]
    x = {
        "field": "seconds",
        "type": "quantitative",
        "scale": {"type": "log", "nice": False, "padding": 20},
        "title": "seconds of a run (mean over its runs)",
    }
    y = {"field": "mean", "type": "quantitative", "title": split_of(board), "scale": {"zero": False}}
    colour = {"condition": {"test": "datum.front", "value": COLOURS[1]}, "value": COLOURS[0]}
    tooltip = [{"field": name} for name in ("row", "seconds", "mean", "low", "high")]
    layers: list[Spec] = [
        {
            "mark": {"type": "line", "interpolate": "step-after", "color": COLOURS[1], "strokeDash": [5, 3]},
            "transform": [{"filter": "datum.front"}],
            "encoding": {"x": x, "y": y, "order": {"field": "seconds"}},
        },
        {
            "mark": {"type": "rule", "strokeOpacity": 0.4},
            "transform": [{"filter": "isValid(datum.low)"}],
            "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
        },
        {"mark": {"type": "point", "filled": True, "size": 55}, "encoding": {"x": x, "y": y, "color": colour, "tooltip": tooltip}},
    ]
    told = "Dashed: the Pareto front, of rows that no faster one equals. A group's seconds are shared out among its runs."
    return Chart("cost", f"Cost against {board.metric}", told, spec_of(points, layer=layers))


def front(points: Sequence[dict[str, Any]], lower: bool) -> list[dict[str, Any]]:
    """The points that no faster or equally fast one equals: {"seconds", "mean"}."""
    kept: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda point: (point["seconds"], point["mean"] if lower else -point["mean"])):
        if not kept or (point["mean"] < kept[-1]["mean"] if lower else point["mean"] > kept[-1]["mean"]):
            kept.append(point)
    return kept


def curves(board: Board) -> Iterator[Chart]:
    """The metric and the loss over epochs, of the best rows: the mean of a row's runs, and the span between them."""
    chosen = [row for row in board.rows if row.done][:CURVES]
    read = {row.name: [_curves(run.path / METRICS) for run in row.done] for row in chosen}
    which = "the best on val" if board.best else "in the table's order"
    for name, metrics in ((board.metric, ("val", "train")), ("loss", ("val", "train"))):
        points = []
        for row, runs in read.items():
            for split in metrics:
                epochs = sorted({epoch for run in runs for epoch in run.get(f"{split}/{name}", {})})
                for epoch in epochs:
                    values = [run[f"{split}/{name}"][epoch] for run in runs if epoch in run.get(f"{split}/{name}", {})]
                    points.append(
                        {
                            "row": row,
                            "split": split,
                            "epoch": epoch,
                            "mean": sum(values) / len(values),
                            "low": min(values),
                            "high": max(values),
                        }
                    )
        if not points:
            continue
        x = {"field": "epoch", "type": "quantitative", "axis": {"tickMinStep": 1}}
        y = {"field": "mean", "type": "quantitative", "title": name, "scale": {"zero": False}}
        colour = {
            "field": "row",
            "type": "nominal",
            "scale": {"range": list(COLOURS)},
            "title": None,
            "sort": list(read),
            "legend": legend(board.axes),
        }
        dash = {"field": "split", "type": "nominal", "sort": ["val", "train"], "title": None, "legend": legend((), "top")}
        layers: list[Spec] = [
            {
                "mark": {"type": "area", "fillOpacity": 0.15},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour, "detail": {"field": "split"}},
            },
            {
                "mark": {"type": "line"},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": colour,
                    "strokeDash": dash,
                    "tooltip": [{"field": each} for each in ("row", "split", "epoch", "mean")],
                },
            },
        ]
        told = f"{words.count(len(read), 'row')}, {which}: the mean over a row's runs, and the span from the lowest to the highest of them."
        yield Chart(f"curves-{name}", f"{name} over epochs", told, spec_of(points, layer=layers))


def _curves(path: Any) -> dict[str, dict[int, float]]:
    """metric -> epoch -> value"""
    found: dict[str, dict[int, float]] = {}
    for line in Metrics(path).rows():
        try:
            epoch, value = int(line["epoch"]), float(line["value"])
        except ValueError:
            continue  # a stranger's file
        if math.isfinite(value):
            found.setdefault(line["metric"], {})[epoch] = value
    return found


def confusion(found: Answers) -> Chart | None:
    """How often each class was taken for each, as parts of the true class; None: nothing was answered, or of too many classes."""
    names, table = answered.confusion(found)
    if not 1 < len(names) <= CLASSES:
        return None
    totals = table.sum(axis=1)
    points = [
        {"truth": names[row], "said": names[column], "n": int(table[row, column]), "part": float(table[row, column] / totals[row])}
        for row in range(len(names))
        for column in range(len(names))
        if totals[row] and table[row, column]
    ]
    side = {"type": "nominal", "sort": names, "scale": {"domain": names}}
    x = {**side, "field": "said", "title": "said", "axis": {"labelAngle": -45, "labelLimit": 90}}
    y = {**side, "field": "truth", "title": "truth", "axis": {"labelLimit": 120}}
    colour = {
        "field": "part",
        "type": "quantitative",
        "title": "part of the class",
        "legend": BELOW,
        "scale": {"scheme": RAMP, "domain": [0, 1]},
    }
    tooltip = [{"field": each} for each in ("truth", "said", "n", "part")]
    layers: list[Spec] = [{"mark": "rect", "encoding": {"x": x, "y": y, "color": colour, "tooltip": tooltip}}]
    if len(names) <= 20:
        letters = {"condition": {"test": "datum.part > 0.5", "value": "black"}, "value": "white"}
        layers.append({"mark": {"type": "text", "fontSize": 9}, "encoding": {"x": x, "y": y, "text": {"field": "n"}, "color": letters}})
    told = "Each line is a true class: how often it was taken for each, over all runs of the row."
    return Chart("confusion", "Confusion", told, spec_of(points, layer=layers, height=max(HEIGHT, 18 * len(names))))


def reliability(found: Answers) -> Chart | None:
    """How often answers of each score are right; None: scores are no probabilities."""
    read = answered.reliability(found, BINS)
    if read is None:
        return None
    bins, error = read
    points = [{"score": each.score, "right": each.right, "n": each.n} for each in bins]
    line = [{"score": 0, "right": 0}, {"score": 1, "right": 1}]
    x = {"field": "score", "type": "quantitative", "scale": {"domain": [0, 1]}, "title": "score of what was said (mean of the bin)"}
    y = {"field": "right", "type": "quantitative", "scale": {"domain": [0, 1]}, "title": "part that is right"}
    size = {
        "field": "n",
        "type": "quantitative",
        "title": "answers",
        "legend": {"orient": "bottom"},
        "scale": {"rangeMin": 20, "rangeMax": 500},
    }
    layers: list[Spec] = [
        {"data": {"values": line}, "mark": {"type": "line", "strokeDash": [5, 3], "color": COLOURS[6]}, "encoding": {"x": x, "y": y}},
        {
            "mark": {"type": "point", "filled": True, "color": COLOURS[0], "opacity": 0.85},
            "encoding": {"x": x, "y": y, "size": size, "tooltip": [{"field": each} for each in ("score", "right", "n")]},
        },
    ]
    told = f"Points below the dashed line: surer than right. Expected calibration error {error:.3f}, in {BINS} equal bins."
    return Chart("reliability", "Calibration", told, spec_of(points, layer=layers))


def classes(found: Answers) -> Chart | None:
    """Each class's accuracy with its interval, the hardest first; None: nothing was answered."""
    rows = answered.classes(found)[:CLASSES]
    if len(rows) < 2:
        return None
    points = [{"class": row.name, "mean": row.right / row.n, "low": row.low, "high": row.high, "n": row.n} for row in rows]
    y = {"field": "class", "type": "nominal", "sort": [row.name for row in rows], "title": None, "axis": {"labelLimit": 140}}
    x = {"field": "mean", "type": "quantitative", "scale": {"domain": [0, 1]}, "title": "accuracy"}
    tooltip = [{"field": each} for each in ("class", "mean", "low", "high", "n")]
    layers: list[Spec] = [
        {"mark": {"type": "rule", "strokeOpacity": 0.55}, "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}}},
        {"mark": {"type": "point", "filled": True, "size": 45}, "encoding": {"y": y, "x": x, "tooltip": tooltip}},
    ]
    told = "With the 95% interval (Wilson) over each class's answers; the hardest classes first."
    return Chart("classes", "Each class", told, spec_of(points, layer=layers, height=max(120, 16 * len(rows))))


# How figures look


def written(spec: Spec) -> Spec:
    """The spec with a size and a look of its own, for files."""
    look = {"background": "white", "font": "sans-serif", "axis": {"grid": True, "gridColor": "#e4e4e4"}, "view": {"stroke": None}}
    return {**spec, "width": WIDTH, "height": spec.get("height", HEIGHT), "config": look}


def spec_of(points: Sequence[Mapping[str, Any]], **rest: Any) -> Spec:
    kept = [{key: value for key, value in point.items() if value is not None} for point in points]
    return {"data": {"values": kept}, "width": "container", "height": HEIGHT, **rest}


def spread(rows: list[Any]) -> list[Any]:
    """At most so many, evenly over all."""
    return rows if len(rows) <= DRAWN else [rows[len(rows) * place // DRAWN] for place in range(DRAWN)]


def drawn(rows: int) -> str:
    return f" {DRAWN} of {rows:,} rows are drawn, evenly over the table." if rows > DRAWN else ""


def legend(axes: Sequence[str], orient: str = "bottom") -> Spec:
    """Of rows that differ in these axes."""
    look = {"columns": 1 if orient == "bottom" else 2, "symbolType": "stroke", "symbolOpacity": 1, "symbolStrokeWidth": 2}
    return {"orient": orient, "labelLimit": {"expr": "width - 20"}, "labelExpr": shortened(axes), **look}


def shortened(axes: Sequence[str]) -> str:
    """A label's text, without the groups of its keys where no two end alike: lr=0.1 for optimizer.lr=0.1."""
    if len({axis.rpartition(".")[2] for axis in axes}) < len(axes):
        return "datum.label"
    return r"replace(datum.label, regexp('(^|, )([a-z_]\\w*\\.)+(?=[a-z_][\\w.]*(=|$))', 'g'), '$1')"


def bounds(estimate: Estimate) -> dict[str, Any]:
    return {"mean": estimate.value, "low": estimate.low, "high": estimate.high}


def measured(board: Board) -> list[tuple[Row, Estimate]]:
    """Each row that was measured: on test where it was measured there, else on val."""
    found = ((row, board.of("test", row) or board.of("val", row)) for row in board.rows)
    return [(row, estimate) for row, estimate in found if estimate is not None]


def split_of(board: Board) -> str:
    split = "test" if any(board.of("test", row) for row in board.rows) else "val"
    return f"{split} {board.metric}"


def order(value: Any) -> tuple[bool, float, str]:
    """Numbers by their size, before words."""
    return (False, float(value), "") if words.known(value) else (True, 0.0, words.value(value))
