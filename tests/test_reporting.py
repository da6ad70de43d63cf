"""regraft report writes one page that loads nothing, and the same as csv, Markdown, LaTeX and figures; strangers' words stay words."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
from runs import run

from regraft.cli import main
from regraft.report import answered, charts, exports, rows

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
    ("axes", "label", "shown"),
    [
        (["head.dropout", "optimizer.lr"], "head.dropout=0.5, optimizer.lr=0.001", "dropout=0.5, lr=0.001"),
        (["optimizer.lr", "freeze.pretrain_lr"], "optimizer.lr", "lr"),
        (["dataset.rename.0", "freeze"], "dataset.rename.0=9, freeze=none", "rename.0=9, freeze=none"),
        (["model.name", "head.name"], "model.name=mlp, head.name=linear", "model.name=mlp, head.name=linear"),
    ],
    ids=["a row", "an axis", "a key of numbers", "two that end alike"],
)
def test_a_label_leaves_out_what_tells_no_keys_apart(axes, label, shown):
    import vl_convert

    encoding = {"x": {"field": "x", "type": "nominal", "axis": {"labelExpr": charts.shortened(axes), "labelLimit": 999}}}
    drawn = vl_convert.vegalite_to_svg({"data": {"values": [{"x": label}]}, "mark": "point", "encoding": encoding})
    assert f">{shown}<" in drawn
