"""Reports tell what the run folder holds: right figures, the right pictures, and nothing that a stranger's text could bend."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from PIL import Image
from rich.console import Console

from regraft.datasets.source import InMemory, Sample, Source
from regraft.errors import UserError
from regraft.record import METRICS, PREDICTIONS, Metrics, RunFolder
from regraft.report import canvas, pictures, swept, tables, worst
from regraft.report.statistics import over_seeds, wilson

HOSTILE = ["$x$", "[red]r[/red]", "two\nlines\x1b[31m", "W" * 300, "\u202eevil", "مرحبا", "猫", "_", "$\\frac{$", "a" * 60 + " b"]
STAGES = [("stem", 864), ("layer1", 3_000_000), ("pool", 0), ("head", 1_000)]


def rows(*trained: str, lr: float = 0.001) -> list[dict[str, Any]]:
    return [
        {
            "stage": name,
            "parameters": parameters,
            "trains": name in trained,
            "mode": "train" if name in trained else "eval",
            "lr": lr if name in trained else None,
            "output": [8, 4, 4],
        }
        for name, parameters in STAGES
    ]


PROBE = {"name": "probe", "epochs": 2, "boundary": "head", "trains": ["head"], "lr": 1.0, "stages": rows("head")}
TUNE = {"name": "fine-tune", "epochs": 3, "boundary": "stem", "stages": rows("stem", "layer1", "pool", "head", lr=1e-4)}


def source(classes: list[str], per_class: int = 4) -> InMemory:
    """Test pictures in plain colours: the red channel is the class, the green one the number."""
    held, samples = {}, []
    for label in range(len(classes)):
        for number in range(per_class):
            id = f"test/{label}/{number}.png"
            held[id] = np.full((30 + 10 * number, 40, 3), (20 * label, 60 * number, 200), np.uint8)
            samples.append(Sample(id, "test", label, "0"))
    return InMemory(held, classes, samples)


def predict(folder: RunFolder, classes: list[str], answers: list[tuple[str, int, list[float]]]) -> None:
    columns = {
        "id": [id for id, _, _ in answers],
        "truth": [classes[truth] for _, truth, _ in answers],
        "predicted": [classes[int(np.argmax(scores))] for _, _, scores in answers],
        "scores": [scores for _, _, scores in answers],
    }
    polars.DataFrame(columns, schema_overrides={"scores": polars.List(polars.Float64)}).write_parquet(folder / PREDICTIONS)


def finished(path: Path, classes: list[str], config: dict[str, Any] | None = None, **fields: Any) -> RunFolder:
    """A run folder of a run that is done, with two phases of metrics and no predictions."""
    folder = RunFolder(path)
    folder.begin(config or {"seed": 0, "optimizer": {"lr": 0.1}}, {"run_id": path.name})
    metrics = Metrics(folder / METRICS)
    metrics.start(0)
    for epoch in range(5):
        values = {f"{split}/{name}": 1 / (epoch + 2) for split in ("train", "val") for name in ("loss", "accuracy")}
        metrics.append("probe" if epoch < 2 else "fine-tune", epoch, 10 * epoch, values | {"lr": 0.1})
    record: dict[str, Any] = {
        "data": {"sizes": {"train": 573, "val": 208, "test": 210}, "classes": classes, "skipped": []},
        "phases": [PROBE, TUNE],
        "cache": [
            {"boundary": "head", "split": "train", "view": "0 degrees", "mode": "cached", "computed": 573, "rows": 573, "seconds": 9.1},
            {"boundary": "head", "split": "val", "view": "0 degrees", "mode": "cached", "computed": 200, "rows": 208, "seconds": 3.1},
            {"boundary": "stem", "split": "train", "mode": "live", "why": "the lowest stage trains"},
        ],
        "kept": {"epoch": 3, "monitor": "val/accuracy", "value": 0.5577},
        "times": {"total": 75.0, "frozen": 12.2, "train": 50.0, "evaluate": 1.0},
        "metrics": {"train/accuracy": 1.0, "train/loss": 0.02, "val/accuracy": 116 / 208, "test/accuracy": 118 / 210, "test/loss": 1.25},
        "warnings": [],
    }
    folder.finish(**{**record, **fields})
    return folder


def shown(renderable: Any, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= min(width, 100)
    return "\n".join(line.rstrip() for line in text.splitlines())


def words(text: str) -> str:
    return " ".join(text.split())


# Statistics


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (1, 3), (118, 210), (49_999, 50_000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_wilson_is_scipys(correct: int, n: int, confidence: float) -> None:
    from scipy.stats import binomtest

    expected = binomtest(correct, n).proportion_ci(confidence, method="wilson")
    assert wilson(correct, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"), [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)]
)
def test_wilson_is_as_published(correct: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3."""
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_no_interval_of_nothing(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match="n >= 1"):
        wilson(correct, n)


# Tables


def test_stages_says_what_each_phase_trains() -> None:
    text = shown(tables.stages([{**phase, "rows": phase["stages"]} for phase in (PROBE, TUNE)]))
    lines = {line.split()[0]: words(line) for line in text.splitlines() if line.strip()}
    assert lines["layer1"] == "layer1 8 x 4 x 4 3,000,000 frozen, eval train lr 0.0001"
    assert lines["head"] == "head 8 x 4 x 4 1,000 train lr 0.001 train lr 0.0001"
    assert lines["total"] == "total 3,001,864 1,000 train 3,001,864 train"
    assert "2 epochs" in text
    assert "3 epochs" in text


def test_stages_of_many_phases_all_appear() -> None:
    text = words(shown(tables.stages([{"name": f"phase-{number}", "epochs": 1, "rows": rows("head")} for number in range(9)])))
    assert all(f"phase-{number}" in text for number in range(9))


def test_an_unexpected_mode_is_told() -> None:
    odd = [{**row, "mode": "eval" if row["trains"] else "train"} for row in rows("head")]
    text = shown(tables.stages([{"name": "probe", "epochs": 1, "rows": odd}]))
    assert "train lr 0.001, in eval mode" in text
    assert "frozen, in train mode" in text


def test_result_holds_the_records_figures(tmp_path: Path) -> None:
    skipped = [{"file": f"{number}.png", "problem": "is empty"} for number in range(7)]
    data = {"sizes": {"train": 573, "val": 208, "test": 210}, "skipped": skipped}
    folder = finished(tmp_path / "run", ["a"], data=data, warnings=["BatchNorm is local"])
    (folder / "curves.png").touch()
    text = words(shown(tables.result(folder), 100).replace("\n", " "))
    low, high = wilson(118, 210)
    for expected in (
        f"test 0.562 {low:.3f}–{high:.3f} 210 1.250",
        "train 1.000 0.993–1.000 573 0.020",
        "val 0.558 0.490–0.624 208 –",  # no val loss was recorded
        "773 pictures ran once through 3 stages (3.0 M parameters) in 12.2 s",
        "read from the cache: 8 pictures at head",
        "train ran live: the lowest stage trains",
        "probe: stem to pool, 3 stages (3.0 M parameters)",
        "fine-tune: nothing, every stage trains",
        "epoch 3 of 0–4 (val/accuracy 0.558)",
        "1 min 15 s in all: 12.2 s frozen part, 50.0 s training, 1.0 s evaluation",
        "7 pictures",
        "4.png: is empty",
        "and 2 more",
        "BatchNorm is local",
    ):
        assert expected in text, text
    assert "5.png" not in text
    assert text.count(".png") == 6  # five skipped ones, and of the pictures the one that exists


@pytest.mark.parametrize(("enters", "thing"), [("pictures", "pictures"), ("sequence", "samples")])
def test_what_is_no_picture_is_not_called_one(tmp_path: Path, enters: str, thing: str) -> None:
    source = Source(["a", "b"], [Sample("0", "train", 0, "0" * 64)])
    source.input = enters
    text = words(shown(tables.result(finished(tmp_path / "run", ["a"], data=source.facts())), 100).replace("\n", " "))
    assert f"773 {thing} ran once" in text


def test_classes_are_told_one_by_one_where_they_are_few(tmp_path: Path) -> None:
    few = {name: {"accuracy": number / 4, "truths": 4} for number, name in enumerate(["bug", "[red]flag", "fruit"])}
    assert "each class: bug 0.000, [red]flag 0.250, fruit 0.500" in words(
        shown(tables.result(finished(tmp_path / "few", ["a"], details=few)))
    )
    many = {str(number): {"accuracy": 0.5, "truths": 4} for number in range(tables.EACH + 1)}
    for name, details in {"many": many, "other": {"a": {"truths": 3}, "b": {}}}.items():
        assert "each class" not in shown(tables.result(finished(tmp_path / name, ["a"], details=details)))


def test_what_ran_live_throughout_is_said_with_its_reason(tmp_path: Path) -> None:
    live = [{"boundary": "stem", "split": split, "mode": "live", "why": "cache.mode=off"} for split in ("train", "val")]
    text = shown(tables.result(finished(tmp_path / "run", ["a"], cache=live)))
    assert "everything ran live: cache.mode=off" in text


def test_nothing_is_invented_for_a_run_that_failed_or_runs(tmp_path: Path) -> None:
    failed, running = RunFolder(tmp_path / "failed"), RunFolder(tmp_path / "running")
    for folder in (failed, running):
        folder.begin({"seed": 0}, {"run_id": "x"})
    failed.update(status="failed", error={"kind": "UserError", "message": "model.depth = 20: no such depth\nsecond line", "rank": 0})
    text = shown(tables.result(failed))
    assert "UserError: model.depth = 20: no such depth" in text
    assert "second line" in text
    assert "accuracy" not in text
    assert "no result yet" in shown(tables.result(running))


@pytest.mark.parametrize("missing", ["data", "phases", "cache", "kept", "times", "metrics", "warnings"])
def test_result_survives_a_missing_key(tmp_path: Path, missing: str) -> None:
    text = shown(tables.result(finished(tmp_path / "run", ["a"], **{missing: None})))
    assert "done" in text
    assert "None" not in text
    if missing == "data":
        assert "0.562" in text  # the accuracy is known
        assert "0.494" not in text  # its interval is not: nobody knows of how many pictures


def sweeping(tmp_path: Path) -> list[RunFolder]:
    folders = []
    for lr, val, test in ((0.1, 0.5, 0.9), (0.2, 0.6, 0.4), (0.3, 0.55, 0.95)):
        config = {"optimizer": {"lr": lr}, "model": {"name": "resnet"}}
        folders.append(finished(tmp_path / str(lr), ["a"], config, metrics={"val/accuracy": val, "test/accuracy": test}))
    failed = RunFolder(tmp_path / "failed")
    failed.begin({"optimizer": {"lr": 0.4}, "model": {"name": "vgg"}}, {"run_id": "x"})
    failed.update(status="failed", error={"kind": "UserError", "message": "first line\nsecond line", "rank": 0})
    damaged = RunFolder(tmp_path / "damaged")
    damaged.path.mkdir()
    (damaged / "record.json").write_text("{")
    return [*folders, failed, damaged]


@pytest.mark.parametrize("width", [100, 45])
def test_sweep_marks_the_best_on_val_and_not_on_test(tmp_path: Path, width: int) -> None:
    text = shown(swept.table(sweeping(tmp_path), ["model", "optimizer.lr"]), width)
    (marked,) = [line for line in text.splitlines() if "* " in line and "best on val" not in line]
    assert "resnet" in marked
    whole = words(text)
    assert "choice was made on val" in whole
    assert "first line" in whole
    assert "second line" not in whole
    assert "damaged" in whole
    assert "0.600" in whole  # no figure is cut
    if width == 100:
        assert words(marked) == "* resnet 0.2 0.600 0.533–0.665 0.400 0.336–0.467 75.0 done"  # 125 of 208 and 84 of 210
        order = [line.split()[-1] for line in text.splitlines() if line.split()[-1:] and line.split()[-1] in ("done", "failed", "damaged")]
        assert order == ["done", "done", "done", "failed", "damaged"]


def test_what_became_of_each_run_is_told_and_a_long_error_once_and_short(tmp_path: Path) -> None:
    """All of an error was said when it happened; a run that was pruned, or that nobody could finish, is never the best."""
    folders = [finished(tmp_path / "done", ["a"], {"rate": 0}, metrics={"val/accuracy": 0.5, "test/accuracy": 0.4})]
    ends: dict[str, dict[str, Any]] = {
        "pruned": {"status": "pruned", "metrics": {"val/accuracy": 0.9}},
        "killed": {"error": {"kind": "Killed", "message": "the worker was ended by SIGKILL", "rank": None}},
        "failed": {"status": "failed", "error": {"kind": "ValueError", "message": "what it was " + "x" * 900 + "\nand why", "rank": 0}},
    }
    for name, fields in ends.items():
        folder = RunFolder(tmp_path / name)
        folder.begin({"rate": name}, {"run_id": name, "error": None})
        folder.update(**fields)
        folders.append(folder)
    text = words(shown(swept.table(folders, ["rate"])))
    (marked,) = re.findall(r"\* (\w+) ", text.replace("* best", ""))
    assert marked == "0"
    assert "interrupted" in text
    assert "ended by SIGKILL" in text
    assert "pruned 0.900" in text
    assert text.count("ValueError: what it was") == 1
    assert text.count("x") < 300
    assert "and why" not in text
    assert "sweep.retry=true tries" in text
    assert "the same command goes on" in text
    assert "ended by SIGKILL" in words(shown(tables.result(folders[2])))
    assert "interrupted" in words(shown(tables.result(folders[2])))
    assert "not measured on test" in words(shown(tables.result(folders[1])))


def test_seeds_are_folded_and_the_choice_is_made_by_their_mean(tmp_path: Path) -> None:
    """The best single run is a lucky seed of the worse setting."""
    figures = {"a": [(0.50, 0.40), (0.52, 0.44), (0.54, 0.48)], "b": [(0.30, 0.20), (0.60, 0.70), (0.33, 0.30)], "c": [(0.9, 0.9)]}
    folders = [
        finished(
            tmp_path / f"{name}{seed}", ["x"], {"model": {"name": name}, "seed": seed}, metrics={"val/accuracy": v, "test/accuracy": t}
        )
        for name, seeds in figures.items()
        for seed, (v, t) in enumerate(seeds)
    ]
    unfinished = RunFolder(tmp_path / "c1")
    unfinished.begin({"model": {"name": "c"}, "seed": 1}, {"run_id": "c1", "error": None})
    text = shown(swept.table([*folders, unfinished], ["model.name", "seed"]))
    assert [line.split()[1] for line in text.splitlines() if line.lstrip().startswith("* ") and "best" not in line] == ["a"] * 3
    assert "* best on val, by the mean of its seeds" in words(text)
    low, high = 0.44 - 4.30265 * 0.04 / 3**0.5, 0.44 + 4.30265 * 0.04 / 3**0.5  # t of two degrees of freedom
    assert f"3 seeds model.name=a: val 0.520 (0.470–0.570), test 0.440 ({low:.3f}–{high:.3f})" in words(text)
    assert "model.name=c: val" not in text, "one of its seeds is not done"


def test_sweep_without_val_marks_none(tmp_path: Path) -> None:
    text = shown(swept.table([finished(tmp_path / "run", ["a"], metrics={"test/accuracy": 1.0})], ["seed"]))
    assert "none is marked" in text
    assert "*" not in text


def test_the_interval_over_seeds_is_students() -> None:
    """The hours of sleep of ten patients (Student 1908), and the interval that R's manual of t.test prints for them."""
    gained = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    assert over_seeds(gained) == pytest.approx((1.58, 0.7001142, 2.4598858), abs=1e-6)
    with pytest.raises(ValueError, match="needs two or more"):
        over_seeds(gained[:1])


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_only_text(tmp_path: Path, name: str) -> None:
    config = {"model": {"name": name}}
    data = {"sizes": {"test": 5}, "skipped": [{"file": name, "problem": name}]}
    folder = finished(tmp_path / "run", [name], config, data=data, warnings=[name])
    failed = RunFolder(tmp_path / "failed")
    failed.begin(config, {"run_id": "x"})
    failed.update(status="failed", error={"kind": "E", "message": name, "rank": 0})
    phase = {"name": name, "epochs": 1, "rows": [{**row, "stage": name} for row in rows("head")]}
    for renderable in (tables.result(folder), swept.table([folder, failed], ["model", name]), tables.stages([phase])):
        text = shown(renderable)
        assert all(character.isprintable() or character == "\n" for character in text)
        if len(name) < 20 and name.isprintable():
            assert name in text  # "[red]" is shown, not obeyed


# Pictures


def test_mistakes_are_the_surest_wrong_answers(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "[x]*=$run$")  # a path is no pattern either
    folder.path.mkdir()
    nan = float("nan")
    answers = [
        ("right, sure", 0, [0.99, 0.005, 0.005]),
        ("b wrong", 0, [0.1, 0.6, 0.3]),
        ("a wrong, as sure", 2, [0.6, 0.2, 0.2]),
        ("surest wrong", 1, [0.01, 0.02, 0.97]),
        ("diverged", 1, [nan, nan, nan]),
        ("least wrong", 1, [0.2, 0.3, 0.5]),
    ]
    predict(folder, ["cat", "dog", "cow"], answers)
    given = pictures.answers(folder / PREDICTIONS)
    assert given is not None
    found = worst.mistakes(given)
    assert [each.id for each in found] == ["surest wrong", "a wrong, as sure", "b wrong", "least wrong", "diverged"]
    assert found[0] == worst.Mistake("surest wrong", "dog", "cow", 0.97)
    assert found[-1].score is None
    assert [each.id for each in worst.mistakes(given, most=2)] == ["surest wrong", "a wrong, as sure"]


def opened(path: Path) -> Image.Image:
    """A PNG that is whole, neither a stamp nor a poster, not blank, and small as a file."""
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert all(150 <= side <= 1600 for side in image.size)
        assert path.stat().st_size < 300_000
        picture = image.convert("RGB")
    assert len(picture.getcolors(1 << 24) or []) > 1
    return picture


@pytest.mark.parametrize("classes", [["cat", "dog"], HOSTILE, [f"class {n}" for n in range(100)], [f"{n}" for n in range(400)]], ids=len)
def test_three_whole_pictures_whatever_the_classes(tmp_path: Path, classes: list[str], recwarn: pytest.WarningsRecorder) -> None:
    folder = finished(tmp_path / "run", classes)
    held = source(classes, 1)
    predict(folder, classes, [(s.id, s.label, [float(i == 0) for i in range(len(classes))]) for s in held.samples])
    paths = pictures.draw(folder, held)
    assert [path.name for path in paths] == ["curves.png", "confusion.png", "mistakes.png"]
    assert all(opened(path) for path in paths)
    assert not [path for path in folder.path.iterdir() if path.name.endswith(".part")]
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_the_sheet_shows_the_mistakes_pictures(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run", ["cat", "dog"])
    held = source(["cat", "dog"], 2)
    predict(folder, ["cat", "dog"], [("test/0/0.png", 0, [1.0, 0.0]), ("test/0/1.png", 0, [0.1, 0.9]), ("test/1/1.png", 1, [0.8, 0.2])])
    pictures.draw(folder, held)
    sheet = opened(folder / "mistakes.png")
    middle = worst.HEAD + worst.BOX // 2
    first, second = (sheet.getpixel((worst.MARGIN + number * worst.PITCH + worst.BOX // 2, middle)) for number in (0, 1))
    assert first == (0, 60, 200)  # test/0/1.png
    assert second == (20, 60, 200)  # test/1/1.png
    colours = {colour for _, colour in sheet.getcolors(1 << 24) or []}
    assert (0, 0, 200) not in colours  # the one that was right


def test_no_mistakes_is_said_and_a_lost_picture_does_not_stop_the_sheet() -> None:
    with canvas.styled():
        none = worst.sheet([], 8, source(["cat", "dog"]))
        lost = worst.sheet([worst.Mistake("gone.png", "cat", "dog", 0.9)], 8, source(["cat", "dog"]))
    assert none.height < 250 < lost.height
    assert min(np.asarray(none).min(), np.asarray(lost)[worst.HEAD + 10 : worst.HEAD + worst.BOX - 10].min()) < 160  # words


def test_counts_are_truth_by_prediction() -> None:
    counts = pictures._counts([("a", "a"), ("a", "b"), ("a", "b"), ("b", "b")], ["a", "b"])
    assert counts.tolist() == [[1, 2], [0, 1]]
    with pytest.raises(UserError, match="no such class"):
        pictures._counts([("a", "z")], ["a", "b"])


def test_shares_add_up_in_each_row() -> None:
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 1, 1]])
    assert pictures._shares(counts, 1).tolist() == [[0.75, 0.25, 0], [0, 0, 0], [0, 0.5, 0.5]]
    assert pictures._shares(counts, 2).tolist() == [[1, 0], [0.5, 0.5]]  # the first two classes as one, the third alone


def test_phases_and_gaps_of_the_curves(tmp_path: Path) -> None:
    metrics = Metrics(finished(tmp_path / "run", ["a"]) / METRICS)
    metrics.append("fine-tune", 5, 60, {"val/loss": float("inf")})
    assert pictures._phases(metrics.rows()) == [("probe", 0, 1), ("fine-tune", 2, 5)]
    epochs, values = pictures._line(metrics.rows(), "val/loss")
    assert epochs == [0, 1, 2, 3, 4, 5]
    assert values[:5] == [1 / (epoch + 2) for epoch in range(5)]
    assert np.isnan(values[5])


def test_two_phases_are_parted_and_the_kept_epoch_is_marked(tmp_path: Path) -> None:
    metrics = Metrics(finished(tmp_path / "run", ["a"]) / METRICS).rows()
    one = [{**row, "phase": "probe"} for row in metrics]
    with canvas.styled():
        parted, plain, unmarked = (
            np.asarray(pictures.curves(rows, kept)) for rows, kept in ((metrics, {"epoch": 3}), (one, {"epoch": 3}), (one, None))
        )
    line = round(80 + 570 * 2 / 5)  # px: axes begin at 80 and are 570 wide; phase two begins at epoch 2 of five
    changed = np.flatnonzero((parted != plain).any(axis=2)[150:400].any(axis=0))
    assert set(changed[changed < 660]) <= set(range(line - 2, line + 3))
    assert changed.size
    marked = np.flatnonzero((plain != unmarked).any(axis=2)[110:440].any(axis=0))
    assert abs(marked[marked < 660].mean() - (80 + 570 * 3.5 / 5)) < 2


def test_a_run_without_predictions_has_curves_only(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run", ["cat", "dog"])
    assert [path.name for path in pictures.draw(folder, source(["cat", "dog"]))] == ["curves.png"]
    (folder / PREDICTIONS).write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="can't be read"):
        pictures.draw(folder, source(["cat", "dog"]))


def test_importing_reports_is_cheap() -> None:
    code = "import sys, regraft.report.pictures, regraft.report.tables; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["torch", "matplotlib", "polars", "scipy", "PIL", "hydra", "numpy"]
    assert subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True).stdout.strip() == "[]"
