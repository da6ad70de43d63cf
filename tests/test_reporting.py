"""regraft report writes one page that loads nothing, and the same as csv, Markdown, LaTeX and figures; strangers' words stay words."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
from runs import run

from regraft.cli import main
from regraft.report import answered, axes, charts, exports, rows
from regraft.report.statistics import wilson

EVIL = "</script><script>alert(1)</script>"
LETTERS = "abcdefgh"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two depths and two rates, three seeds each: the deeper and faster a net, the surer it is right; one run has failed."""
    root, draw = tmp_path_factory.mktemp("sweep"), np.random.default_rng(0)
    for depth in (1, 2):
        for lr in (1e-3, 1e-2):
            for seed in range(3):
                skill = 0.4 + 0.15 * depth + 10 * lr
                says = {f"{letter}{n}": letter if draw.uniform() < skill else "h" for letter in LETTERS for n in range(10)}
                config = {"model": {"name": "mlp", "depth": depth}, "optimizer": {"name": "sgd", "lr": lr}, "seed": seed}
                overrides = [f"model.depth={depth}", f"optimizer.lr={lr}", f"seed={seed}"]
                run(
                    root / f"{depth}-{lr}-{seed}",
                    says,
                    config,
                    overrides=overrides,
                    command="regraft train -m x",
                    times={"total": 5.0 * depth},
                )
    error = {"kind": "Oops", "message": f"Oops: {EVIL}"}
    run(
        root / "failed",
        {"a1": "a"},
        {"model": {"name": EVIL}},
        status="failed",
        error=error,
        overrides=[f"model={EVIL}"],
        command=f"regraft {EVIL}",
    )
    return root


@pytest.fixture(scope="module")
def written(sweep, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "report"
    assert main(["report", str(sweep), "--output", str(out)]) == 0
    return out


def embedded(out):
    """The page's data, as its script reads them."""
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', (out / "index.html").read_text(), re.DOTALL)[1]
    )


def test_the_page_loads_nothing_from_elsewhere(written):
    page = (written / "index.html").read_text()
    assert len(page) < 8 << 20
    own = page[: page.index('<script type="application/json"')]
    assert not re.search(r'(src|href)="(?!#|data:)', own), "what the page's head and body name lies in the page"
    assert "default-src 'none'" in own


def test_strangers_words_are_no_tags(written):
    page = (written / "index.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page  # the failed run's error, as text
    assert page.count("<script") == 3  # data, library and script
    for name in ("results.csv", "table.md", "table.tex"):
        assert "\x1b" not in (written / name).read_text()


def test_the_leaderboard_has_each_row_with_its_runs(written, sweep):
    [board] = embedded(written)["boards"]
    titles = [column["title"] for column in board["columns"]]
    assert titles[:3] == ["model", "model.depth", "optimizer.lr"]
    assert len(board["rows"]) == 5
    best = board["rows"][0]
    assert best["best"]
    assert best["cells"][1:4] == ["2", "0.01", 3]
    assert [one[2] for one in best["runs"]] == ["done"] * 3
    assert all((written / one[6]).resolve().is_relative_to(sweep) for row in board["rows"] for one in row["runs"])


def test_every_figure_is_a_file_too(written):
    names = {path.name for path in (written / "figures").iterdir()}
    expected = [
        "axis-model.depth",
        "axis-optimizer.lr",
        "rows",
        "parallel",
        "cost",
        "curves-accuracy",
        "curves-loss",
        "confusion",
        "reliability",
        "classes",
    ]
    assert names == {f"{name}.{suffix}" for name in expected for suffix in ("png", "pdf")}
    assert all((written / "figures" / name).stat().st_size > 2_000 for name in names)
    assert len(embedded(written)["charts"]) == len(expected)


def test_each_run_is_a_line_of_the_csv(written):
    lines = list(csv.DictReader((written / "results.csv").open()))
    assert len(lines) == 13
    assert {line["status"] for line in lines} == {"done", "failed"}
    line = next(line for line in lines if line["run_id"] == "2-0.01-1")
    assert (line["model.depth"], line["optimizer.lr"], line["seed"], line["seconds"]) == ("2", "0.01", "1", "10.0")
    assert 0 < float(line["test/accuracy"]) <= 1


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+1", "-1+1", "\t=1", "\r=1"])
def test_no_cell_begins_a_formula(tmp_path, text):
    run(tmp_path / "a", {"a1": "a"}, {"model": {"name": text}}, overrides=[text], command=text)
    run(tmp_path / "b", {"a1": "a"})
    exports.results(rows.read([tmp_path]), tmp_path / "results.csv")
    cells = [cell for line in csv.reader((tmp_path / "results.csv").open()) for cell in line]
    assert any(text.strip() in cell for cell in cells)
    assert not [cell for cell in cells if cell.startswith(exports.FORMULA)]


def test_the_tables_say_what_the_page_says(written):
    markdown, tex = (written / "table.md").read_text(), (written / "table.tex").read_text()
    assert "| **mlp** | **2** | **0.01** | **3** |" in markdown
    assert "t, 3 runs" in markdown
    assert tex.count(r"\\") == 6  # a head and five rows
    assert r"\textbf{0.01}" in tex
    assert all(line in tex for line in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}"))


def test_letters_that_tex_would_run_are_set_as_they_are():
    assert exports.tex(r"50% of $a_1 & \b{#}~^") == r"50\% of \$a\_1 \& \textbackslash{}b\{\#\}\textasciitilde{}\textasciicircum{}"


def test_rows_are_tested_against_the_best_on_the_same_pictures(sweep):
    [board] = rows.boards(rows.read([sweep]))
    found = answered.against_best(board)
    assert len(found) == 3  # the failed one has no answers
    assert all(each.pictures == 80 and each.low <= each.difference <= each.high and each.p <= each.adjusted for each in found)
    worst = next(each for each in found if "model.depth=1, optimizer.lr=0.001" in each.row)
    assert worst.p < 0.05
    assert worst.difference > 0


def test_answers_are_counted_by_class_and_by_picture(sweep):
    [board] = rows.boards(rows.read([sweep]))
    best = answered.Answers.read(board.best)
    names, table = answered.confusion(best)
    assert names == list(LETTERS)
    assert table.sum() == 3 * 80
    assert table[-1, -1] == 30  # h is never taken for something else
    hardest = answered.classes(best)
    assert hardest[-1].name == "h"
    assert hardest[0].right / hardest[0].n < 1
    hard, read = answered.hardest(board, 5)
    assert read == 12
    assert [each.wrong for each in hard] == sorted((each.wrong for each in hard), reverse=True)
    assert all(each.said == "h" for each in hard)


def test_calibration_is_guos():
    """Equation 3 by hand: two bins of one and three answers, |.5 - 0| and |.9 - 2/3| apart."""
    said = {"a1": ("a", "b", 0.5), "a2": ("a", "a", 0.9), "a3": ("a", "a", 0.9), "a4": ("a", "b", 0.9)}
    found = answered.Answers(({name: answered.Answer(*each) for name, each in said.items()},))
    bins, error = answered.reliability(found, 10)
    assert [(each.n, each.right) for each in bins] == [(1, 0), (3, pytest.approx(2 / 3))]
    assert error == pytest.approx(0.5 / 4 + (0.9 - 2 / 3) * 3 / 4)
    assert answered.reliability(answered.Answers(({"a1": answered.Answer("a", "a", 3.0)},)), 10) is None  # no probability


def right(n):
    """Answers to ten pictures of each letter, so many of them right."""
    return {f"{letter}{at}": letter if at < n else "z" for letter in LETTERS for at in range(10)}


def test_of_rows_that_differ_in_a_chosen_key_the_best_on_val_is_left(tmp_path):
    for lr, depth, skill in ((0.1, 1, 4), (0.2, 1, 7), (0.1, 2, 8), (0.2, 2, 6)):
        for seed in range(2):
            says = right(skill)
            run(tmp_path / f"{lr}-{depth}-{seed}", says, {"model": {"name": "mlp", "depth": depth}, "optimizer": {"lr": lr}, "seed": seed})
    [board] = rows.boards(rows.read([tmp_path]), ["model.depth", "optimizer.lr"])
    assert len(board.rows) == 4
    left = board.choose(["optimizer.lr"])
    assert [row.name for row in left.rows] == ["model.depth=2, optimizer.lr=0.1", "model.depth=1, optimizer.lr=0.2"]
    assert left.best is board.best
    assert [chart.name for chart in axes.over(left)] == ["axis-model.depth"]
    assert "optimizer.lr" in left.choice


def test_a_row_that_misses_runs_is_not_chosen_where_another_is_whole(tmp_path):
    for lr, skill in ((0.1, 9), (0.2, 5)):
        run(tmp_path / f"{lr}", right(skill), {"optimizer": {"lr": lr}, "model": {"depth": 1}})
    error = {"kind": "Oops", "message": "Oops"}
    run(tmp_path / "failed", {}, {"optimizer": {"lr": 0.1}, "model": {"depth": 1}, "seed": 1}, status="failed", error=error, metrics={})
    [board] = rows.boards(rows.read([tmp_path]), ["optimizer.lr"])
    assert [row.name for row in board.choose(["optimizer.lr"]).rows] == ["optimizer.lr=0.2"]


def test_an_altered_set_is_another_one(tmp_path):
    for place, dataset in enumerate(({}, {"corruption": "noise:3"}, {"rename": {"a": "b", "c": "d"}})):
        run(tmp_path / str(place), right(5), {"dataset": {"name": "letters", "corruption": None, "rename": None} | dataset})
    boards = rows.boards(rows.read([tmp_path]))
    assert [board.data for board in boards] == ["letters", "letters renamed a as b, c as d", "letters under noise:3"]
    [alone] = rows.boards(rows.read([tmp_path / "1"]))
    assert alone.data == "letters", "nothing stands beside it"


def test_a_seed_that_changes_nothing_makes_no_interval_of_its_own(tmp_path):
    for seed in range(3):
        folder = run(tmp_path / str(seed), right(5), {"seed": seed})
        folder.finish()
    [board] = rows.boards(rows.read([tmp_path]))
    estimate = board.rows[0].estimate("test/accuracy")
    assert estimate.how == "Wilson, 80 pictures, of 3 equal runs"
    assert (estimate.low, estimate.high) == pytest.approx(wilson(40, 80))


def test_what_differs_in_few_other_values_has_a_line_for_each(tmp_path):
    """In the order in which words were run; rows that lack the axis at its end."""
    stages = [("stem", True), ("late", True), ("all", True), ("stem", False), ("late", False), ("all", False)]
    for place, (stage, frozen) in enumerate(stages):
        freeze = {"name": "transplant", "stage": stage, "frozen": frozen}
        run(tmp_path / f"{place}", right(3 + place), {"freeze": freeze}, times={"launched": float(place), "total": 1.0})
    run(tmp_path / "none", right(2), {"freeze": {"name": "none"}}, times={"launched": 9.0, "total": 1.0})
    [board] = rows.boards(rows.read([tmp_path]), ["freeze.stage", "freeze.frozen"])
    drawn = {chart.name: chart for chart in axes.over(board)}
    spec = drawn["axis-freeze.stage"].spec
    line = next(layer for layer in spec["layer"] if layer["mark"]["type"] == "line")
    assert line["encoding"]["x"]["sort"] == ["stem", "late", "all", "–"]
    assert line["encoding"]["color"]["sort"] == ["freeze.frozen=true", "freeze.frozen=false", "–"]
    assert line["transform"][0]["filter"]["oneOf"] == ["stem", "late", "all"], "what has no stage is joined to none"
    assert "rows without freeze.stage" in drawn["axis-freeze.stage"].caption
    every = axes.ranked(board)
    assert [point["row"] for point in every.spec["data"]["values"]] == [row.name for row in board.rows]


def test_many_other_values_have_one_line_through_their_means(tmp_path):
    for lr in range(10):
        for depth in (1, 2):
            run(tmp_path / f"{lr}-{depth}", right(depth + lr % 5), {"model": {"depth": depth}, "optimizer": {"lr": lr / 10}})
    [board] = rows.boards(rows.read([tmp_path]), ["model.depth", "optimizer.lr"])
    [depth, _] = axes.over(board)
    [dashed] = [layer for layer in depth.spec["layer"] if layer["mark"]["type"] == "line"]
    assert dashed["data"]["values"] == [
        {"value": "1", "mean": pytest.approx(0.3), "rows": 10},
        {"value": "2", "mean": pytest.approx(0.4), "rows": 10},
    ]


def test_the_front_is_of_what_nothing_faster_equals():
    points = [{"seconds": s, "mean": m} for s, m in ((1, 0.5), (2, 0.5), (3, 0.7), (3, 0.6), (4, 0.65), (5, 0.8))]
    assert [(point["seconds"], point["mean"]) for point in charts.front(points, lower=False)] == [(1, 0.5), (3, 0.7), (5, 0.8)]
    assert [point["mean"] for point in charts.front(points, lower=True)] == [0.5]


def test_rows_over_several_data_sets_have_an_interquartile_mean(tmp_path):
    for data, gain in (("one", 0.0), ("two", 0.2)):
        for model, skill in (("small", 0.4), ("large", 0.6)):
            for seed in range(2):
                figures = {"val/accuracy": skill, "test/accuracy": skill + gain + seed / 100}
                facts = {"name": data, "kind": "class", "fingerprint": data, "sizes": {"test": 1}}
                config = {"model": {"name": model}, "dataset": {"name": data}, "seed": seed}
                run(tmp_path / f"{data}-{model}-{seed}", {"a1": "a"}, config, data=facts, metrics=figures, overrides=["model=x"])
    found = answered.across(rows.boards(rows.read([tmp_path])))
    assert [(each.name, each.sets, each.runs) for each in found] == [("model=large", 2, 4), ("model=small", 2, 4)]
    assert found[0].found.value == pytest.approx((0.61 + 0.8) / 2)
    assert main(["report", str(tmp_path)]) == 0
    assert "Over data sets" in (tmp_path / "report" / "index.html").read_text()


def test_a_report_is_no_run_of_the_next_one(tmp_path):
    run(tmp_path / "one", {"a1": "a", "b1": "a"})
    for _ in range(2):
        assert main(["report", str(tmp_path)]) == 0
    assert len(list(csv.DictReader((tmp_path / "report" / "results.csv").open()))) == 1


def test_pictures_are_shown_where_their_data_set_is_here(tmp_path):
    from regraft import config

    [job] = config.Composer().jobs(["dataset=digits", "model=mlp", "model.weights=none", "freeze=none"], multirun=False)
    ids = [sample.id for sample in job.settings.dataset.open(tmp_path).samples if sample.split == "test"][:4]
    folder = run(
        tmp_path / "one", dict.fromkeys(ids, "x"), job.config, data={"name": "digits", "kind": "class", "sizes": {"test": 4, "val": 4}}
    )
    assert folder.config["dataset"]["name"] == "digits"
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "index.html").read_text().count("data:image/jpeg;base64") == 4


@pytest.mark.parametrize(
    ("keys", "label", "shown"),
    [
        (["head.dropout", "optimizer.lr"], "head.dropout=0.5, optimizer.lr=0.001", "dropout=0.5, lr=0.001"),
        (["optimizer.lr", "freeze.pretrain_lr"], "optimizer.lr", "lr"),
        (["dataset.rename.0", "freeze"], "dataset.rename.0=9, freeze=none", "rename.0=9, freeze=none"),
        (["model.name", "head.name"], "model.name=mlp, head.name=linear", "model.name=mlp, head.name=linear"),
    ],
    ids=["a row", "an axis", "a key of numbers", "two that end alike"],
)
def test_a_label_leaves_out_what_tells_no_keys_apart(keys, label, shown):
    import vl_convert

    encoding = {"x": {"field": "x", "type": "nominal", "axis": {"labelExpr": charts.shortened(keys), "labelLimit": 999}}}
    drawn = vl_convert.vegalite_to_svg({"data": {"values": [{"x": label}]}, "mark": "point", "encoding": encoding})
    assert f">{shown}<" in drawn
