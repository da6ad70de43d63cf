"""A finished run says of a file what it says of the same thing in its set; what it says is drawn where it is, and over nobody's file."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars
import pytest
import torch
from hypothesis import given as always
from hypothesis import strategies as st
from PIL import Image

from regraft import asking, cli, drawing
from regraft.datasets import given
from regraft.datasets.samples import Sample
from regraft.datasets.sequences import Chorales, Text
from regraft.datasets.source import Source
from regraft.errors import UserError
from regraft.record import PREDICTIONS
from regraft.report import canvas, pictures, readings, rolls, said, worst

pytestmark = pytest.mark.usefixtures("one_thread")

BLUE, VERMILION, INK = ((0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0x22, 0x22, 0x22))
SHORT = ["hardware=cpu", "hardware.workers=0", "trainer.max_epochs=1", "data.batch_size=8", "freeze=none", "model.weights=none"]


def where(picture, colour) -> np.ndarray:
    """bool [h, w]"""
    return (np.asarray(picture) == colour).all(-1)


def told(run, path, capsys) -> list[dict]:
    assert asking.predict(str(run.folder.path), [str(path)], 30, as_json=True) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def kept(run) -> dict[str, list[float]]:
    """The scores of predictions.parquet by the last part of each id, in the order of the classes."""
    rows = polars.read_parquet(run.folder / PREDICTIONS).select("id", "scores").rows()
    return {name.rpartition("/")[2]: scores for name, scores in rows}


def waves(classes: bool) -> str:
    draws = np.random.default_rng(0)
    lines = ["@problemName Waves", "@timeStamps false", f"@classLabel {'true a b' if classes else 'false'}", "@data"]
    for number in range(40):
        steps = draws.normal(size=(2, 3 + number % 6)).cumsum(1)
        case = ":".join(",".join("?" if value > 3 else f"{value:.3f}" for value in channel) for channel in steps)
        lines.append(f"{case}:{'ab'[number % 2]}" if classes else case)
    return "\n".join(lines)


def test_a_series_is_asked_about_as_it_was_measured(executed, tmp_path, capsys):
    (tmp_path / "waves.ts").write_text(waves(True))
    (tmp_path / "unknown.ts").write_text(waves(False))
    run = executed([*SHORT, "dataset=series", f"dataset.path={tmp_path / 'waves.ts'}", "model=lstm", "model.depth=1", "model.width=5"])
    expected, found = kept(run), told(run, tmp_path / "unknown.ts", capsys)
    assert [row["line"] for row in found] == list(range(5, 45))
    assert len(expected) >= 4
    for row in found:
        if (name := f"{row['line']:06d}") in expected:
            assert [row["scores"][each] for each in run.classes] == pytest.approx(expected[name], abs=1e-5)
    (tmp_path / "other.ts").write_text("@classLabel false\n@data\n1,2:3,4\n1,2:3,4:5,6\n")
    with pytest.raises(UserError, match=r"other\.ts:4.*has 3 channels where the lines above have 2"):
        told(run, tmp_path / "other.ts", capsys)
    (tmp_path / "other.ts").write_text("@classLabel false\n@data\n1,2\n")
    with pytest.raises(UserError, match=r"other\.ts:3.*has 1 channels, and the run has learnt on 2"):
        told(run, tmp_path / "other.ts", capsys)


def test_what_is_longer_than_the_whole_set_is_asked_about_whole_and_alike_in_any_batch(executed, tmp_path, capsys):
    (tmp_path / "waves.ts").write_text(waves(True))
    words = [*SHORT, "dataset=series", f"dataset.path={tmp_path / 'waves.ts'}", "model=gru", "model.depth=1", "model.width=5"]
    run, cut = executed(words), executed([*words, "dataset.length=4"])
    long = ",".join(str(number % 3) for number in range(50))
    (tmp_path / "long.ts").write_text(f"@classLabel false\n@data\n{long}:{long}\n")
    (tmp_path / "both.ts").write_text(f"@classLabel false\n@data\n0,1,2:0,1,2\n{long}:{long}\n")
    (tmp_path / "begin.ts").write_text("@classLabel false\n@data\n0,1,2,0:0,1,2,0\n")
    (tmp_path / "short.ts").write_text("@classLabel false\n@data\n0,1,2:0,1,2\n")

    def said_by(asked, name: str) -> list[dict]:
        return [row["scores"] for row in told(asked, tmp_path / name, capsys)]

    assert said_by(run, "both.ts")[1] == pytest.approx(said_by(run, "long.ts")[0], abs=1e-6)
    assert said_by(run, "both.ts")[0] == pytest.approx(said_by(run, "short.ts")[0], abs=1e-6)
    assert said_by(run, "long.ts")[0] != pytest.approx(said_by(run, "begin.ts")[0], abs=1e-5)
    assert said_by(cut, "long.ts")[0] == pytest.approx(said_by(cut, "begin.ts")[0], abs=1e-6), "the run has seen four steps of each"


def test_a_text_is_asked_about_as_it_was_measured(executed, tmp_path, capsys):
    letters = [
        "".join(row) for row in np.random.default_rng(0).choice(list("abcdefgh"), (40, 6))
    ]  # texts of the same letters share a split
    lines = [f"{'fine good' if number % 2 else 'bad dark'} {word} \u00e9t\u00e9" for number, word in enumerate(letters)]
    table = ["text,label", *(f'"{line}",{number % 2}' for number, line in enumerate(lines))]
    (tmp_path / "texts.csv").write_text("\n".join(table), encoding="utf-8")
    run = executed([*SHORT, "dataset=text", f"dataset.path={tmp_path / 'texts.csv'}", "model=gru", "model.depth=1", "model.width=5"])
    expected = kept(run)
    (tmp_path / "new.csv").write_text("\n".join(["number;text", *(f"{n};{line}" for n, line in enumerate(lines))]), encoding="utf-8")
    found = told(run, tmp_path / "new.csv", capsys)
    assert len(found) == 40
    assert len(expected) >= 4
    for row in found:
        if (name := f"{row['line']:09d}") in expected:
            assert [row["scores"][each] for each in run.classes] == pytest.approx(expected[name], abs=1e-5)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "one.txt").write_text(lines[7], encoding="utf-8")
    (tmp_path / "folder" / "picture.png").write_bytes(b"")
    [alone] = told(run, tmp_path / "folder", capsys)
    assert alone.keys() == {"file", "predicted", "scores"}
    assert alone["file"] == str(tmp_path / "folder" / "one.txt")
    assert alone["scores"] == pytest.approx(found[7]["scores"], abs=1e-5)
    with pytest.raises(UserError, match=r"--draw.*this run reads texts"):
        asking.predict(str(run.folder.path), [str(tmp_path / "folder")], 3, False, tmp_path / "out")


def test_a_mail_is_its_body(tmp_path):
    (tmp_path / "vocabulary.json").write_text('["", "<unknown>", "hello", "free"]')
    (tmp_path / "mail").write_bytes(b"Subject: free free free\nFrom: a@b\n\nHello, FREE hello\n")
    spec = SimpleNamespace(level="word", length=None)
    known = given.Known(spec, {"input": {"shape": [6]}}, tmp_path)
    [found] = given._mails(known, tmp_path / "mail")
    assert found.values.tolist() == [2, 1, 3, 2, 0, 0]
    [found] = given._mails(known._replace(data={"input": {"shape": [2]}}), tmp_path / "mail")
    assert found.values.tolist() == [2, 1, 3, 2], "longer than all texts of the set"


def test_a_line_of_the_sets_own_size_is_read_as_it_is(executed, tmp_path, capsys):
    small = ["dataset.train=12", "dataset.val=4", "dataset.test=6", "model.width=4", "model.units=6"]
    run = executed([*SHORT, "task=ocr", "dataset=digit_strings", *small, "trainer.max_epochs=3", "optimizer.lr=0.02"])
    table = polars.read_parquet(run.folder / PREDICTIONS)
    samples = run.source.split("test")
    assert [sample.id for sample in samples] == table["id"].to_list()
    for number, sample in enumerate(samples):
        ink = np.rint(run.source.read(sample) * 255).astype(np.uint8)
        Image.fromarray(255 - ink if number % 2 else ink).save(tmp_path / f"{number}.png")
    found = [row["predicted"] for number in range(6) for row in told(run, tmp_path / f"{number}.png", capsys)]
    assert found == table["predicted"].to_list()
    assert cli.main(["predict", str(run.folder.path), str(tmp_path / "1.png"), "--draw", str(tmp_path / "out")]) == 0
    drawn = np.asarray(Image.open(tmp_path / "out" / "1.predicted.png").convert("RGB"))
    shown = said.enlarged(np.asarray(Image.open(tmp_path / "1.png").convert("RGB")))
    high, wide = shown.shape[:2]
    assert (drawn[said.AROUND : said.AROUND + high, said.AROUND : said.AROUND + wide] == shown).all(), "the line itself, and the text below"


@always(st.integers(6, 90), st.integers(1, 12), st.integers(3, 60), st.booleans())
def test_letters_of_any_size_become_as_large_as_those_that_were_learnt(size, letters, margin, light):
    picture = np.full((size + 2 * margin, letters * (size + margin) + margin, 3), 250, np.uint8)
    for number in range(letters):
        left = margin + number * (size + margin)
        picture[margin : margin + size, left : left + size] = 10
    ink = given.line(255 - picture if light else picture, 32, 256, 12)
    np.testing.assert_allclose(ink, given.line(picture, 32, 256, 12), atol=0.01)
    assert ink.min() >= 0
    assert ink.max() <= 1
    seen = ink > 0.5
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    room = (256 - 2 * given.EDGE) / (letters * (size + margin) - margin)
    assert len(rows) == pytest.approx(min(12, room * size), abs=1)
    assert columns[0] in (given.EDGE, given.EDGE + 1)
    assert columns[-1] < 256 - given.EDGE + 1
    assert rows[0] + rows[-1] in (30, 31, 32), "in the middle"
    assert not given.line(np.full((size, size, 3), 99, np.uint8), 32, 256, 12).any()


def test_music_is_played_on_and_not_predicted():
    with pytest.raises(UserError, match=r"regraft generate runs/it --prime FILE\.mid"):
        given.reader(Chorales.model_construct(name="chorales"), "runs/it")
    assert given.reader(Text.model_construct(name="text"), "runs/it").suffixes == (".txt", ".csv", ".tsv")


def finder(kind: str, classes: list[str]) -> SimpleNamespace:
    """What a run must have to be drawn."""
    settings = SimpleNamespace(task=SimpleNamespace(KIND=kind), head=SimpleNamespace())
    return SimpleNamespace(settings=settings, classes=classes, answer=lambda scores: "dog|cat")


def test_a_box_is_drawn_where_it_is_however_small_the_picture(tmp_path):
    Image.new("RGB", (64, 32), (200, 200, 200)).save(tmp_path / "small.png")
    scores = torch.zeros(3, 6)
    scores[0] = torch.tensor([0.25, 0.25, 0.75, 0.75, 0.9, 1])
    scores[1] = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.3, 0])  # not sure enough
    picture = np.asarray(drawing.draw(finder("boxes", ["a", "b"]), tmp_path / "small.png", scores, 3))
    height, width = picture.shape[:2]
    assert width == 2 * height >= said.LEAST - 64
    blue = np.abs(picture.astype(int) - BLUE).sum(-1) < 60
    columns, rows = blue[height // 2].nonzero()[0], blue[:, width // 2].nonzero()[0]
    assert columns.min() == pytest.approx(width / 4, abs=3)
    assert columns.max() == pytest.approx(3 * width / 4, abs=3)
    assert rows.max() == pytest.approx(3 * height / 4, abs=3)
    assert not blue[:, : width // 4 - 4].any(), "nothing of what it is not sure of"


@pytest.mark.parametrize(("kind", "lines"), [("class", 2), ("tags", 3), ("numbers", 3), ("text", 1)])
def test_what_is_said_stands_below_the_picture_and_not_on_it(tmp_path, kind, lines):
    pixels = np.random.default_rng(0).integers(0, 255, (400, 500, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    run = finder(kind, ["dog", "a name with $mathematics$ and \x1b[31m" + "long " * 50, "cat"])
    picture = np.asarray(drawing.draw(run, tmp_path / "one.png", torch.tensor([0.1, 0.7, 0.2]), 2))
    around = said.AROUND
    assert (picture[around : around + 400, around : around + 500] == pixels).all()
    assert picture.shape == (400 + 3 * around + said.LEADING * lines, 500 + 2 * around, 3)
    dark = (picture[around + 401 :] < 160).all(-1)
    for number in range(lines):
        assert dark[said.LEADING * number : said.LEADING * (number + 1)].any()
    assert not dark[:, :4].any()
    assert not dark[:, -4:].any()
    assert not dark[-4:].any()


def test_a_drawing_never_takes_the_place_of_another_file(tmp_path):
    out = tmp_path / "out"
    files = [Path("a/cat.png"), Path("b/cat.jpg"), Path("cat-2.png"), Path("a/cat.png"), Path("ü" * 200 + ".png")]
    found = drawing.places(files, out)
    assert [found[each].name for each in files[:4]] == [f"{each}.predicted.png" for each in ("cat", "cat-2", "cat-2-2", "cat")]
    assert len(found[files[4]].name.encode()) < 256
    canvas.save(Image.new("RGB", (4, 4)), out / "cat.predicted.png")
    assert drawing.places(files[:1], out) == {files[0]: out / "cat.predicted.png"}, "ours is drawn again"
    Image.new("RGB", (4, 4)).save(out / "cat.predicted.png")
    with pytest.raises(UserError, match="no drawing of regraft's"):
        drawing.places(files[:1], out)
    with pytest.raises(UserError, match="can't be made"):
        drawing.places(files[:1], out / "cat.predicted.png")
    (out / "cat.predicted.png").unlink()
    (out / "cat.predicted.png").symlink_to("nowhere")
    with pytest.raises(UserError, match="no drawing of regraft's"):
        drawing.places(files[:1], out)


def test_a_captioner_that_looks_shows_where(executed, tmp_path, capsys):
    rows = ["file,caption"]
    for number in range(24):
        picture = Image.new("RGB", (32, 32), (255, 0, 0) if number % 2 else (0, 0, 255))
        picture.putpixel((number, 0), (255, 255, 255))  # equal pictures would share a split
        picture.save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,a {'red' if number % 2 else 'blue'} square")
    (tmp_path / "captions.csv").write_text("\n".join(rows))
    net = ["task=caption", "model=captioner", "model.backbone={name: timm, arch: test_efficientnet}", "head.attention=true", "head.width=8"]
    data = [
        "dataset=captions",
        f"dataset.path={tmp_path / 'captions.csv'}",
        "dataset.floor=1",
        "dataset.val=0.2",
        "dataset.test=0.4",
        "data.size=64",
        "plots=true",
    ]
    run = executed([*SHORT, *net, *data, "trainer.max_epochs=8", "optimizer.lr=0.01"])
    assert not run.record["warnings"]
    tests = len(run.source.split("test"))
    sheet = Image.open(run.folder / "looks.png")
    assert sheet.height == pytest.approx(92 + 172 * min(tests, drawing.SHOWN), abs=2)
    out = tmp_path / "out"
    words = ["predict", str(run.folder.path), str(tmp_path / "1.png"), str(tmp_path / "2.png"), "--draw", str(out)]
    assert cli.main(words) == 0
    assert cli.main(words) == 0, "the same command draws them again"
    captions = [line.partition("  ")[2].split() for line in capsys.readouterr().out.splitlines()][:2]
    assert sorted(path.name for path in out.iterdir()) == ["1.predicted.png", "2.predicted.png"]
    drawn = Image.open(out / "1.predicted.png").convert("RGB")
    assert drawn.getpixel((24 + 55, 92 + 55)) == (255, 0, 0), "the picture itself"
    tiles = [drawn.getpixel((24 + 122 * number + 55, 92 + 55)) for number in range(1, 5)]
    assert sum(tile != (255, 255, 255) for tile in tiles) == min(len(captions[0]), 4), "a tile for each word"
    (out / "1.predicted.png").write_bytes(b"mine")
    assert cli.main(words) == 2
    assert (out / "1.predicted.png").read_bytes() == b"mine"


def test_a_folder_is_asked_about_without_our_own_drawings(tmp_path):
    canvas.save(Image.new("RGB", (4, 4)), tmp_path / "cat.predicted.png")
    canvas.save(Image.new("RGB", (4, 4)), tmp_path / "cat.png")
    assert asking._files(tmp_path, (".png",), "pictures") == [tmp_path / "cat.png"]


def test_the_worst_tags_are_sure_ones_that_are_not_there_then_missed_ones():
    names = ["cat", "dog", "red"]
    rows = [
        ("right", "cat|red", "cat|red", [0.9, 0.1, 0.8]),
        ("sure", "cat", "cat|dog|red", [0.9, 0.7, 0.6]),
        ("surest", "", "cat", [0.95, 0.1, 0.2]),
        ("missed", "dog|red", "red", [0.1, 0.4, 0.9]),
        ("missed more", "cat|dog", "", [0.3, 0.2, 0.1]),
    ]
    table = polars.DataFrame(rows, schema=["id", "truth", "predicted", "scores"], orient="row")
    found = worst.wrong_tags(table, names)
    assert [each.id for each in found] == ["surest", "sure", "missed more", "missed"]
    assert found[0] == worst.Mistake("surest", "no tag", "cat", 0.95)
    assert (found[1].predicted, found[1].score) == ("dog", 0.7)
    assert (found[2].predicted, found[2].score) == ("no dog", 0.2)
    assert len(worst.wrong_tags(table, names, most=2)) == 2


def test_a_roll_has_the_truth_above_and_what_was_foretold_below():
    truth, foretold = np.zeros((2, 8, 12), bool)
    truth[:4, 5] = foretold[:2, 5] = foretold[4:, 7] = True
    picture = rolls.compared(truth, foretold, [f"N{number}" for number in range(12)], 4, "A test")
    middle = picture.height // 2 + 30  # between the two
    true, right, wrong = (where(picture, colour)[rolls.HEAD :, rolls.MARGIN + rolls.NAMES + 2 :] for colour in (INK, BLUE, VERMILION))
    rows = middle - rolls.HEAD
    assert true[:rows].sum() == pytest.approx(2 * right[rows:].sum(), rel=0.1), "half of it was foretold"
    assert wrong[rows:].sum() == pytest.approx(2 * right[rows:].sum(), rel=0.1)
    assert not right[:rows].any()
    assert not wrong[:rows].any()
    assert right.nonzero()[1].max() < wrong.nonzero()[1].min(), "the right ones come first"
    assert right.nonzero()[0].min() > wrong.nonzero()[0].max(), "higher notes stand higher"


class Lines(Source):
    input = "array"

    def read(self, sample: Sample) -> np.ndarray:
        return np.full((8, 40), 1.0 if sample.id == "wrong" else 0.25, np.float32)


def test_lines_that_were_read_wrong_come_first():
    held = Lines([""], [Sample(name, "test", 0, "0", target=np.ones((1, 1), np.int64)) for name in ("right", "wrong")], kind="text")
    with canvas.styled():
        picture = np.asarray(readings.sheet([("right", "12", "12"), ("wrong", "34", "39"), ("gone", "5", "6")], held))
    left = [readings.MARGIN + number * (readings.WIDE + readings.GAP) for number in range(3)]
    down = readings.HEAD + 8 * readings.WIDE // 40 // 2  # px: the middle of the first row's pictures
    assert picture[down, left[0] + 50].tolist() == [0, 0, 0], "ink is dark"
    assert picture[down, left[2] + 50].tolist() == [191, 191, 191]
    red = where(picture, VERMILION)
    assert [bool(red[:, at : at + readings.WIDE].any()) for at in left] == [True, True, False]


def test_a_run_of_each_kind_draws_what_suits_it(executed, tmp_path):
    table = ["file,dark,left"]
    for number in range(30):
        Image.new("RGB", (32, 32), (8 * number,) * 3).save(tmp_path / f"{number}.png")
        table.append(f"{number}.png,{int(number < 12)},{number % 2}")
    (tmp_path / "tags.csv").write_text("\n".join(table))
    (tmp_path / "waves.ts").write_text(waves(True))
    tags = ["task=tag", "dataset=csv", f"dataset.path={tmp_path / 'tags.csv'}", "dataset.labels=[dark,left]", "model=mlp", "data.size=8"]
    small = ["dataset.train=12", "dataset.val=4", "dataset.test=6", "model.width=4", "model.units=6"]
    wave = ["dataset=series", f"dataset.path={tmp_path / 'waves.ts'}", "model=gru", "model.depth=1", "model.width=5"]
    for words, names in (
        (tags, {"mistakes.png"}),
        (["task=ocr", "dataset=digit_strings", *small], {"lines.png"}),
        (wave, {"confusion.png"}),
    ):
        run = executed([*SHORT, *words, "plots=true"])
        assert not [line for line in run.record["warnings"] if "pictures" in line]
        assert {path.name for path in run.folder.path.glob("*.png")} == {"curves.png", *names}


def test_frames_are_drawn_from_their_words(tmp_path):
    names = ["C4", "D4", "E4"]
    assert pictures._roll("C4+E4 - D4", names).tolist() == [[True, False, True], [False] * 3, [False, True, False]]
    assert pictures._roll("", names).shape == (0, 3)
