"""Runs are folded into rows as their seeds, folds and keys say, with intervals that say what they rest on, and with what might mislead."""

from __future__ import annotations

import shutil

import pytest
from runs import run

from regraft.errors import UserError
from regraft.report import exports, robust, rows
from regraft.report.statistics import over_seeds, wilson

SAYS = {"a1": "a", "a2": "a", "b1": "b", "b2": "a"}


def grid(path, lrs=(1e-3, 1e-2), seeds=3):
    """One folder for each rate and seed; the greater rate is right more often."""
    for lr in lrs:
        for seed in range(seeds):
            figures = {"val/accuracy": 0.5 + 10 * lr + seed / 100, "test/accuracy": 0.4 + 10 * lr + seed / 100}
            config = {"optimizer": {"name": "sgd", "lr": lr}, "seed": seed, "launcher": {"name": "local", "jobs": seed}}
            run(path / f"{lr}-{seed}", SAYS, config, metrics=figures, overrides=[f"optimizer.lr={lr}", f"seed={seed}"])
    return path


def test_seeds_are_folded_and_the_best_is_chosen_on_val(tmp_path):
    [board] = rows.boards(rows.read([grid(tmp_path)]))
    assert (board.name, board.axes) == ("letters: accuracy", ("optimizer.lr",))
    assert [row.name for row in board.rows] == ["optimizer.lr=0.01", "optimizer.lr=0.001"]
    assert board.best is board.rows[0]
    test = board.of("test", board.best)
    assert test[:1] + test[2:4] == pytest.approx(over_seeds([0.5, 0.51, 0.52]))
    assert (test.how, test.n, round(test.spread, 4)) == ("t, 3 runs", 3, 0.01)
    assert list(board.warnings()) == []


def test_one_run_has_the_interval_of_its_pictures(tmp_path):
    run(tmp_path / "one", SAYS)
    [board] = rows.boards(rows.read([tmp_path]))
    assert board.rows[0].name == "all runs"
    test = board.of("test", board.rows[0])
    assert test == (0.75, None, *wilson(3, 4), "Wilson, 4 pictures", 1)


def test_folds_of_one_seed_are_counted_together(tmp_path):
    for fold in range(3):
        figures = {"val/accuracy": 1.0, "test/accuracy": fold / 4}
        run(tmp_path / str(fold), SAYS, {"dataset": {"name": "letters", "folds": 3, "fold": fold}}, metrics=figures)
    [board] = rows.boards(rows.read([tmp_path]))
    test = board.of("test", board.rows[0])
    assert (test.value, test.low, test.high) == (3 / 12, *wilson(3, 12))
    assert test.how == "Wilson, 12 pictures in 3 folds"


def test_a_row_that_lacks_runs_is_no_candidate_and_is_told(tmp_path):
    grid(tmp_path, lrs=(1e-3, 5e-3, 1e-2))
    shutil.rmtree(tmp_path / "0.005-0")
    run(
        tmp_path / "0.01-1",
        SAYS,
        {"optimizer": {"name": "sgd", "lr": 1e-2}, "seed": 1},
        status="failed",
        error={"kind": "Oops", "message": "x"},
    )
    [board] = rows.boards(rows.read([tmp_path]))
    assert board.best.name == "optimizer.lr=0.005"
    told = list(board.warnings())
    assert "optimizer.lr=0.01; optimizer.lr=0.005: fewer runs than another row's 3; their means are less sure" in told
    assert any("optimizer.lr=0.01: not all runs are done" in line for line in told)


def test_what_might_mislead_is_told(tmp_path):
    run(tmp_path / "a", SAYS, {"trainer": {"monitor": "test/accuracy"}})
    run(
        tmp_path / "b",
        SAYS,
        {"trainer": {"monitor": "auto"}},
        data={"name": "letters", "kind": "class", "fingerprint": "g", "sizes": {"test": 4}},
    )
    told = " ".join(next(iter(rows.boards(rows.read([tmp_path])))).warnings())
    assert "chosen on test (trainer.monitor)" in told
    assert "fingerprints differ" in told


def test_runs_without_val_are_not_ranked_by_test(tmp_path):
    for name, value in (("b", 0.9), ("a", 0.1)):
        run(tmp_path / name, SAYS, {"model": {"name": name}}, metrics={"test/accuracy": value})
    [board] = rows.boards(rows.read([tmp_path]))
    assert board.best is None
    assert [row.name for row in board.rows] == ["model=a", "model=b"]
    assert any("nothing could be chosen" in line for line in board.warnings())


def test_data_sets_and_metrics_stand_by_themselves(tmp_path):
    run(tmp_path / "a", SAYS)
    run(tmp_path / "b", SAYS, metric="mae", metrics={"val/mae": 3.0, "test/mae": 3.0})
    run(tmp_path / "c", SAYS, metric="mae", metrics={"val/mae": 2.0, "test/mae": 4.0}, config={"model": {"name": "c"}})
    found = {board.metric: board for board in rows.boards(rows.read([tmp_path]))}
    assert found["mae"].lower
    assert found["mae"].best.values["model"] == "c"  # less is better
    assert not found["accuracy"].lower


def test_keys_that_decide_nothing_make_no_rows(tmp_path):
    for place, name in enumerate("ab"):
        run(tmp_path / name, SAYS, {"seed": place, "cache": {"dir": name}, "sweep": {"name": name}, "hardware": {"workers": place}})
    [board] = rows.boards(rows.read([tmp_path]))
    assert [len(row.runs) for row in board.rows] == [2]


def test_axes_can_be_chosen(tmp_path):
    [board] = rows.boards(rows.read([grid(tmp_path)]), ["model.depth", "optimizer.lr"])
    assert board.axes == ("model.depth", "optimizer.lr")
    with pytest.raises(UserError, match=r"optimizer\.rate"):
        rows.boards(rows.read([tmp_path]), ["optimizer.rate"])


def test_what_the_commands_did_not_name_tells_rows_apart_where_it_must(tmp_path):
    for name, depth in (("a", 1), ("b", 2)):
        run(tmp_path / name, SAYS, {"model": {"name": "mlp", "depth": depth}}, overrides=["experiment=" + name])
    [board] = rows.boards(rows.read([tmp_path]))
    assert sorted(row.name for row in board.rows) == ["model.depth=1", "model.depth=2"]


def test_a_damaged_run_hides_no_other(tmp_path):
    run(tmp_path / "whole", SAYS)
    damaged = run(tmp_path / "damaged", SAYS)
    (damaged / "record.json").write_text("{")
    found = {each.path.name: each for each in rows.read([tmp_path, tmp_path / "whole"])}
    assert {name: each.status for name, each in found.items()} == {"whole": "done", "damaged": "damaged"}
    assert "record.json" in found["damaged"].trouble


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_a_folder_without_runs_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=name):
        rows.read([tmp_path / name])


def test_the_strengths_of_a_corruption_are_one_shift_and_other_folders_are_their_own(tmp_path):
    for depth in (1, 2):
        metrics = {"val/accuracy": 0.5, "test/accuracy": 0.9, "noise-1/accuracy": 0.8, "noise-3/accuracy": 0.2 * depth, "noise-1/loss": 1.0}
        metrics |= {"blur-2/accuracy": 0.5, "cats-3/accuracy": 0.1}
        run(tmp_path / str(depth), SAYS, {"model": {"name": "mlp", "depth": depth}}, metrics=metrics, overrides=[f"model.depth={depth}"])
    [board] = rows.boards(rows.read([tmp_path]))
    assert board.strengths == ("noise-1", "noise-3", "blur-2", "cats-3")
    assert board.shifts == ("noise", "blur-2", "cats-3")
    assert {row.values["model.depth"]: board.of("noise", row).value for row in board.rows} == pytest.approx({1: 0.5, 2: 0.6})
    assert board.of("jpeg", board.rows[0]) is None
    chart = robust.chart(board)
    drawn = {(point["split"], point["kind"]) for point in chart.spec["data"]["values"]}
    assert drawn == {("test", "test"), ("noise-1", "noise"), ("noise-3", "noise"), ("blur-2", "blur"), ("cats-3", "cats-3")}
    exports.markdown([board], tmp_path / "table.md")
    assert "| noise | blur-2 | cats-3 |" in (tmp_path / "table.md").read_text()
    exports.latex([board], tmp_path / "table.tex")
    assert r"\begin{tabular}{lrrrrrrr}" in (tmp_path / "table.tex").read_text()
