"""regraft diff tells what differs between two runs, and on which test pictures they disagree."""

from __future__ import annotations

import json

import pytest
from runs import run

from regraft.cli import main
from regraft.record import PREDICTIONS
from regraft.report import differing


def test_what_differs_is_told_by_key_and_by_picture(tmp_path, capsys):
    one = run(tmp_path / "one", {"a1": "a", "a2": "b", "b1": "b", "b2": "a"})
    other = run(
        tmp_path / "other",
        {"b1": "b", "a1": "a", "a2": "a", "b3": "b"},
        {"model": {"name": "resnet", "depth": 18}},
        metrics={"val/accuracy": 0.5, "test/accuracy": 0.75},
    )
    found = differing.compare(one, other)
    assert found.sections["config"] == [("model.name", "mlp", "resnet"), ("model.depth", 1, 18)]
    assert found.sections["metrics"] == [("metrics.test/accuracy", 0.5, 0.75)]
    assert not {"seed", "data"} & found.sections.keys()
    told = found.answers
    assert (told.shared, told.only_first, told.only_second) == (3, 1, 1)
    assert told.differ == [("a2", "a", "b", "a")]
    assert told.right == {"both": 2, "first": 0, "second": 1, "neither": 0}
    assert told.p == 1.0  # one picture tells nothing: 2 * (1/2)
    assert main(["diff", str(one.path), str(other.path)]) == 0
    shown = capsys.readouterr().out
    assert all(
        text in shown for text in ("model.depth", "18", "1 of 3 test pictures answered differently; 1 more of the first alone", "a2")
    )
    assert main(["diff", str(one.path), str(other.path), "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert read["answers"]["differ"] == [{"id": "a2", "truth": "a", "first": "b", "second": "a"}]
    assert {"key": "model.depth", "first": 1, "second": 18} in read["sections"]["config"]


def test_a_run_differs_from_itself_in_nothing(tmp_path, capsys):
    one = run(tmp_path / "one", {"a1": "a"})
    found = differing.compare(one, one)
    assert not found.sections
    assert not found.answers.differ
    assert main(["diff", str(one.path), str(one.path)]) == 0
    assert "0 of 1 test picture answered differently" in " ".join(capsys.readouterr().out.split())


def test_answers_that_are_not_right_or_wrong_are_only_compared(tmp_path):
    one, other = (run(tmp_path / name, {"a1": said, "a2": "x"}, kind="numbers") for name, said in (("one", "1"), ("other", "2")))
    told = differing.compare(one, other).answers
    assert (len(told.differ), told.right, told.p) == (1, None, None)


def test_a_run_without_predictions_is_told(tmp_path, capsys):
    one, other = run(tmp_path / "one", {"a1": "a"}), run(tmp_path / "other", {"a1": "a"})
    (other / PREDICTIONS).unlink()
    assert main(["diff", str(one.path), str(other.path)]) == 0
    assert "no predictions yet" in capsys.readouterr().out


def test_strangers_words_are_shown_plain(tmp_path, capsys):
    one = run(tmp_path / "one", {"a\x1b[31m[bold]": "a"})
    other = run(tmp_path / "other", {"a\x1b[31m[bold]": "\x1b]0;b"}, {"model": {"name": "[red]x\x1b[2J"}})
    assert main(["diff", str(one.path), str(other.path)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "[red]x" in shown


@pytest.mark.parametrize("missing", [0, 1])
def test_a_folder_that_is_no_run_is_named(tmp_path, capsys, missing):
    words = [str(run(tmp_path / "one", {"a1": "a"}).path)] * 2
    words[missing] = str(tmp_path / "nothing")
    assert main(["diff", *words]) == 2
    assert "nothing" in capsys.readouterr().err
