"""Sets of sequences, each on a made miniature in its real format: series, scores and texts as nets read them, and as they are refused."""

from __future__ import annotations

import base64
import json
import pickle
import zipfile
from collections import Counter, defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from regraft import cli, config, midi, sweep
from regraft.datasets import chorales, memo, scores, sequences, series, steps, text
from regraft.datasets.source import Sample
from regraft.datasets.spec import DatasetSpec
from regraft.errors import Problem, UserError
from regraft.record import Metrics
from regraft.registry import parse

CONF = Path(__file__).parents[1] / "conf" / "dataset"
SPECS: dict[str, type[DatasetSpec]] = {
    "japanese_vowels": sequences.JapaneseVowels,
    "series": sequences.Series,
    "chorales": sequences.Chorales,
    "text": sequences.Text,
    "spam": sequences.Spam,
}
RNG = np.random.default_rng(0)


def spec(name: str, **values: Any) -> Any:
    """The YAML's values with some set otherwise."""
    return parse(SPECS[name], yaml.safe_load((CONF / f"{name}.yaml").read_text()) | values, "dataset")


def opened(cache: Path, name: str, **values: Any) -> Any:
    return spec(name, **values).open(cache)


def refused(cache: Path, name: str, **values: Any) -> list[Problem]:
    with pytest.raises(UserError) as caught:
        opened(cache, name, **values)
    return caught.value.problems


# ---- what all have in common


@pytest.mark.parametrize("name", SPECS)
def test_config_and_spec_have_the_same_keys(name: str) -> None:
    assert set(yaml.safe_load((CONF / f"{name}.yaml").read_text())) == set(SPECS[name].model_fields)


def holds(source: Any) -> None:
    """The contract of a source of arrays: one shape, zeros behind the end, equal hashes for equal arrays and for no others."""
    contents = defaultdict(set)
    for sample in source.samples:
        array = source.read(sample)
        assert array.shape == source.shape
        there = array > 0 if source.tokens else array[:, -1]
        count = int(there.sum())
        assert count >= 1
        np.testing.assert_array_equal(there, np.arange(source.shape[0]) < count)  # steps first, then the padding
        assert not array[count:].any()
        assert array.dtype == (np.int64 if source.tokens else np.float32)
        contents[sample.sha256].add(array.tobytes())
    assert all(len(arrays) == 1 for arrays in contents.values())
    assert len({*(next(iter(arrays)) for arrays in contents.values())}) == len(contents)
    again = pickle.loads(pickle.dumps(source))  # loader workers get a copy
    assert again.fingerprint() == source.fingerprint()


# ---- series

HEADER = "# made\n@problemName Made\n@timeStamps false\n@univariate false\n@classLabel true a b\n@data\n"


def wave(file: Path, cases: list[tuple[list[list[object]], str]], header: str = HEADER) -> Path:
    """A .ts file of cases (channels, class)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [":".join([*(",".join(map(str, channel)) for channel in channels), label]) for channels, label in cases]
    file.write_text(header + "\n".join(lines) + "\n")
    return file


def many(count: int, seed: int) -> list[tuple[list[list[object]], str]]:
    """Cases of two channels and 2 to 6 steps, both classes in turn."""
    draw = np.random.default_rng(seed)
    return [(draw.normal(3, 2, (2, draw.integers(2, 7))).round(3).tolist(), "ab"[number % 2]) for number in range(count)]


def test_series_are_normalised_by_train_alone_and_padded(tmp_path: Path) -> None:
    wave(tmp_path / "Made_TRAIN.ts", [([[1, 2, 3], [5, "?", 7]], "a"), ([[4, 5], [9, 9]], "b")])
    wave(tmp_path / "Made_TEST.ts", [([[3], [100]], "b")])
    source = opened(tmp_path, "series", path=str(tmp_path), val=0.0)
    assert (source.sizes(), source.shape, source.input) == ({"train": 2, "val": 0, "test": 1}, (3, 3), "sequence")
    first = source.read(source.split("train")[0])
    # channel 1: 1..5, mean 3, deviation sqrt 2; channel 2: 5 7 9 9, mean 7.5, deviation sqrt 2.75
    known = [[-2 / 2**0.5, -2.5 / 2.75**0.5, 1], [-1 / 2**0.5, 0, 1], [0, -0.5 / 2.75**0.5, 1]]
    np.testing.assert_allclose(first, known, rtol=1e-6)
    np.testing.assert_allclose(source.read(source.split("test")[0]), [[0, 92.5 / 2.75**0.5, 1], [0, 0, 0], [0, 0, 0]], rtol=1e-6)
    assert source.facts()["scaling"] == {"mean": [3.0, 7.5], "std": [2**0.5, 2.75**0.5]}
    assert source.remarks == ["1 numbers are unknown; each is taken for its channel's mean"]
    holds(source)


def test_test_cases_move_no_mean(tmp_path: Path) -> None:
    scalings = []
    for seed in (1, 2):
        wave(tmp_path / str(seed) / "Made_TRAIN.ts", many(20, 0))
        wave(tmp_path / str(seed) / "Made_TEST.ts", many(20, seed))
        scalings.append(opened(tmp_path, "series", path=str(tmp_path / str(seed))).facts()["scaling"])
    assert scalings[0] == scalings[1]


def test_long_series_are_cut_and_that_is_told(tmp_path: Path) -> None:
    file = wave(tmp_path / "Made.ts", many(40, 0))
    lengths = [case.steps.shape[0] for case in series.read(file)]
    source = opened(tmp_path, "series", path=str(file), length=4)
    assert source.shape == (4, 3)
    assert source.remarks == [f"{sum(length > 4 for length in lengths)} of 40 series are longer than dataset.length=4 steps, and were cut"]
    assert source.sizes() == {"train": 28, "val": 6, "test": 6}
    whole = opened(tmp_path, "series", path=str(file))
    assert whole.shape == (6, 3)
    assert whole.fingerprint() != source.fingerprint()
    holds(source)


@given(st.lists(st.lists(st.floats(-1e6, 1e6) | st.none(), min_size=1, max_size=5), min_size=1, max_size=8))
def test_what_is_written_is_read(tmp_path_factory: Any, lines: list[list[float | None]]) -> None:
    file = tmp_path_factory.getbasetemp() / "any.ts"
    wave(file, [([["?" if value is None else repr(value) for value in line]], "a") for line in lines])
    found = [[None if np.isnan(value) else value for value in case.steps[:, 0].tolist()] for case in series.read(file)]
    assert found == lines


def test_vowels_keep_their_own_test_split(tmp_path: Path) -> None:
    header = HEADER.replace("a b", " ".join(sequences.VOWELS))
    for split, each in (("TRAIN", 10), ("TEST", 4)):
        draw = np.random.default_rng(len(split))
        cases = [(draw.normal(size=(2, 5)).tolist(), name) for name in sequences.VOWELS for _ in range(each)]
        wave(tmp_path / f"JapaneseVowels_{split}.ts", cases, header)
    source = opened(tmp_path, "japanese_vowels", path=str(tmp_path))
    assert source.sizes() == {"train": 72, "val": 18, "test": 36}
    assert set(Counter(sample.label for sample in source.split("val")).values()) == {2}
    assert all(sample.id.startswith("JapaneseVowels_TEST/") for sample in source.split("test"))
    other = opened(tmp_path, "japanese_vowels", path=str(tmp_path), split_seed=1)
    assert {each.id for each in other.split("val")} != {each.id for each in source.split("val")}
    assert [each.id for each in other.split("test")] == [each.id for each in source.split("test")]


@pytest.mark.parametrize(
    ("line", "where", "what"),
    [
        ("1,2:3:a", 8, "channels of 1 or 2 steps"),
        ("1,2:a", 8, "1 channels where the lines above have 2"),
        ("1,2:3,4:c", 8, "no class of @classLabel"),
        ("1,x:3,4:a", 8, "is no number"),
        ("1,inf:3,4:a", 8, "not finite"),
        ("1,2,3,4", 8, "needs channels and a class"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, line: str, where: int, what: str) -> None:
    file = wave(tmp_path / "Made.ts", [([[1, 2], [3, 4]], "a")])
    file.write_text(file.read_text() + line + "\n")
    [problem] = refused(tmp_path, "series", path=str(file))
    assert problem.key == f"{file}:{where}"
    assert what in problem.remedy


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ("@timeStamps true\n@data\n", "steps with times"),
        ("@targetLabel true\n@data\n", "numbers to predict"),
        ("@classLabel false\n@data\n", "no classes to learn"),
        ("1,2:a\n", "is this a .ts file?"),
        ("@univariate true\n", "no line @data"),
    ],
)
def test_headers_of_other_sets_are_refused(tmp_path: Path, header: str, what: str) -> None:
    file = tmp_path / "Made.ts"
    file.write_text(header)
    [problem] = refused(tmp_path, "series", path=str(file))
    assert what in problem.remedy


def test_files_of_series_are_found_or_named(tmp_path: Path) -> None:
    folder = tmp_path / "Made"
    for stem in ("Made", "Made_eq"):
        wave(folder / f"{stem}_TRAIN.ts", many(20, 0))
    assert series._files(folder) == {"train": folder / "Made_TRAIN.ts"}  # by the folder's name, as the archives have it
    folder = folder.rename(tmp_path / "Other")
    [problem] = refused(tmp_path, "series", path=str(folder))
    assert "Made_TRAIN.ts or Made_eq_TRAIN.ts" in problem.remedy
    [problem] = refused(tmp_path, "series", path=str(tmp_path / "nowhere.ts"))
    assert "no such file" in problem.remedy
    alone = wave(tmp_path / "Alone_TEST.ts", many(4, 0))
    [problem] = refused(tmp_path, "series", path=str(alone))
    assert "no Alone_TRAIN.ts" in problem.remedy
    assert "a value is needed" in refused(tmp_path, "series")[0].remedy


@pytest.mark.engines
@pytest.mark.skipif(find_spec("aeon") is None, reason="aeon's files are not there")
def test_japanese_vowels(tmp_path: Path) -> None:
    source = opened(tmp_path, "japanese_vowels", val=0.0)
    assert (source.sizes(), source.shape) == ({"train": 270, "val": 0, "test": 370}, (29, 13))
    lengths = [int(source.read(sample)[:, -1].sum()) for sample in source.samples]
    assert (min(lengths), max(lengths)) == (7, 29)
    assert Counter(sample.label for sample in source.split("train")) == dict.fromkeys(range(9), 30)
    assert [Counter(each.label for each in source.split("test"))[k] for k in range(9)] == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    there = np.concatenate([source.steps(sample) for sample in source.split("train")])
    np.testing.assert_allclose([there.mean(0), there.std(0)], [[0] * 12, [1] * 12], atol=1e-5)


# ---- chorales

DOCTYPE = '<?xml version="1.0" encoding="UTF-8"?><!DOCTYPE score-partwise PUBLIC "-//Recordare//DTD MusicXML 1.1 Partwise//EN" "x.dtd">'


def tone(letter: str, octave: int, duration: int, *, alter: int = 0, more: str = "", voice: int = 1) -> str:
    pitch = f"<pitch><step>{letter}</step><alter>{alter}</alter><octave>{octave}</octave></pitch>"
    return f"<note>{more}{pitch}<duration>{duration}</duration><voice>{voice}</voice></note>"


def rest(duration: int) -> str:
    return f"<note><rest/><duration>{duration}</duration></note>"


def attributes(divisions: int, more: str = "") -> str:
    return f"<attributes><divisions>{divisions}</divisions>{more}</attributes>"


def music(*parts: list[str], implicit: bool = False) -> str:
    """A score; each part is a list of measures."""
    names = "".join(f'<score-part id="P{n}"><part-name>Part {n}</part-name></score-part>' for n in range(len(parts)))
    first = ' implicit="yes"' if implicit else ""
    body = "".join(
        f'<part id="P{n}">' + "".join(f"<measure{first if not k else ''}>{m}</measure>" for k, m in enumerate(part)) + "</part>"
        for n, part in enumerate(parts)
    )
    return f"{DOCTYPE}<score-partwise><part-list>{names}</part-list>{body}</score-partwise>"


def compressed(file: Path, xml: str, **others: str) -> Path:
    """The score as an .mxl."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/vnd.recordare.musicxml")
        archive.writestr("META-INF/container.xml", '<container><rootfiles><rootfile full-path="a.xml"/></rootfiles></container>')
        archive.writestr("a.xml", xml)
    return file


def simple(tmp_path: Path, xml: str) -> scores.Score:
    file = tmp_path / "score.xml"
    file.write_text(xml, encoding="utf-8")
    return scores.read(file)


def test_a_score_is_read_as_it_sounds(tmp_path: Path) -> None:
    """An upbeat of an eighth, ties, a chord, two voices, a transposing part, a grace note, rests, and divisions that change."""
    tie, chord, grace = '<tie type="start"/>', "<chord/>", "<grace/>"
    soprano = [attributes(2) + tone("C", 5, 1), tone("D", 5, 2, more=tie) + attributes(4) + tone("D", 5, 4) + rest(4) + tone("E", 5, 4)]
    alto = [attributes(2) + rest(1), tone("C", 4, 2) + tone("E", 4, 2, more=chord) + "<forward><duration>2</duration></forward>" + rest(4)]
    tenor = [
        attributes(2) + rest(1),
        tone("A", 3, 8) + "<backup><duration>8</duration></backup>" + tone("F", 3, 3, alter=1, voice=2) + tone("G", 3, 5, voice=2),
    ]
    grace_note = f"<note>{grace}<pitch><step>B</step><octave>3</octave></pitch></note>"
    sounding = "<transpose><chromatic>-2</chromatic><octave-change>-1</octave-change></transpose>"
    bass = [attributes(2, sounding) + rest(1), grace_note + tone("D", 4, 8)]
    score = simple(tmp_path, music(soprano, alto, tenor, bass, implicit=True))
    quarter = scores.TICKS
    heard = {(note.part, note.pitch, note.start / quarter, note.end / quarter) for note in score.notes}
    assert heard == {
        (0, 72, 0, 0.5),
        (0, 74, 0.5, 1.5),
        (0, 74, 1.5, 2.5),
        (0, 76, 3.5, 4.5),
        (1, 60, 0.5, 1.5),
        (1, 64, 0.5, 1.5),
        (2, 57, 0.5, 4.5),
        (2, 54, 0.5, 2.0),
        (2, 55, 2.0, 4.5),
        (3, 48, 0.5, 4.5),
    }
    assert (score.upbeat / quarter, score.length / quarter) == (0.5, 4.5)
    # quarters count from the first whole measure on: the upbeat of an eighth falls between two of them
    roll = chorales.piano_roll(score, chorales.STEP["quarter"], 46)
    assert roll is not None
    assert [(np.flatnonzero(frame) + 36).tolist() for frame in roll] == [
        [48, 54, 57, 60, 64, 74],
        [48, 54, 57, 74],
        [48, 55, 57],
        [48, 55, 57, 76],
    ]
    fine = chorales.piano_roll(score, chorales.STEP["sixteenth"], 88)
    assert fine is not None
    assert fine.shape == (18, 88)
    assert [(np.flatnonzero(frame) + 21).tolist() for frame in fine[[0, 1, 2, 7, 8]]] == [
        [72],
        [72],
        [48, 54, 57, 60, 64, 74],
        [48, 54, 57, 74],
        [48, 55, 57, 74],
    ]


def test_notes_outside_of_the_pitches_are_told_apart(tmp_path: Path) -> None:
    score = simple(tmp_path, music([attributes(1) + tone("C", 7, 4)]))
    assert chorales.piano_roll(score, scores.TICKS, 46) is None
    assert chorales.piano_roll(score, scores.TICKS, 88) is not None


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b'<!DOCTYPE a [<!ENTITY b "c">]><score-partwise>&b;</score-partwise>', "declares an entity"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><score-partwise>&b;</score-partwise>'.encode("utf-16"), "is UTF-16"),
        (b"<score-timewise/>", "its root is score-timewise"),
        (b"<score-partwise/>", "it has no part"),
        (b"<score-partwise>", "no element found"),
        (music([attributes(1) + tone("H", 4, 1)]).encode(), "the letter H"),
        (music([attributes(0) + tone("C", 4, 1)]).encode(), "no divisions"),
        (music([attributes(1) + tone("C", 4, -1)]).encode(), "-1 quarters long"),
        (music([attributes(1) + tone("C", 4, 10**9)]).encode(), "quarters long"),
        (music([attributes(1)], [attributes(1), ""]).encode(), "different numbers of measures"),
        (music([attributes(1) + tone("C", 4, 1).replace("<alter>0<", "<alter>inf<")]).encode(), "infinity"),
    ],
)
def test_broken_scores_are_refused(tmp_path: Path, data: bytes, what: str) -> None:
    file = tmp_path / "score.musicxml"
    file.write_bytes(data)
    with pytest.raises(UserError) as caught:
        scores.read(file)
    [problem] = caught.value.problems
    assert problem.key == str(file)
    assert what in problem.remedy


def test_archives_are_bounded_and_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = compressed(tmp_path / "a.mxl", music([attributes(1) + tone("C", 4, 4)]))
    assert [note.pitch for note in scores.read(file).notes] == [60]
    monkeypatch.setattr(scores, "BIGGEST", 2000)
    bomb = compressed(tmp_path / "b.mxl", " " * 10_000)
    assert bomb.stat().st_size < 2000
    with pytest.raises(UserError, match=r"a\.xml is larger than 2,000 bytes"):
        scores.read(bomb)
    with zipfile.ZipFile(tmp_path / "c.mxl", "w") as archive:
        archive.writestr("META-INF/container.xml", '<container><rootfile full-path="../a.xml"/></container>')
    with pytest.raises(UserError, match=r"its archive has no \.\./a\.xml"):
        scores.read(tmp_path / "c.mxl")


LETTERS = [("C", 0), ("C", 1), ("D", 0), ("D", 1), ("E", 0), ("F", 0), ("F", 1), ("G", 0), ("G", 1), ("A", 0), ("A", 1), ("B", 0)]


def choral(line: list[int]) -> str:
    """Four parts that move together, the lowest 24 semitones below the first."""
    below = (0, 5, 12, 24)
    measures = [
        [attributes(1) + "".join(tone(*(LETTERS[(p - b) % 12][0], (p - b) // 12 - 1, 1), alter=LETTERS[(p - b) % 12][1]) for p in line)]
        for b in below
    ]
    return music(*measures)


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    """40 pieces: number n + 20 has the melody of n, three semitones lower, and goes on otherwise."""
    folder = tmp_path / "pieces"
    folder.mkdir()
    draw = np.random.default_rng(1)
    for number in range(20):
        opening = draw.integers(66, 78, 12).tolist()
        compressed(folder / f"piece{number:02d}.mxl", choral([*opening, *draw.integers(66, 78, number).tolist()]))
        compressed(folder / f"piece{number + 20}.mxl", choral([p - 3 for p in [*opening, *draw.integers(66, 78, 3).tolist()]]))
    (folder / "two.xml").write_text(music([attributes(1) + tone("C", 4, 1)], [attributes(1) + tone("C", 4, 1)]))  # not of four parts
    return folder


def test_what_sounds_next_is_to_be_predicted(tmp_path: Path, pieces: Path) -> None:
    source = opened(tmp_path, "chorales", path=str(pieces))
    assert (source.kind, source.input, source.shape, len(source.samples)) == ("frames", "sequence", (31, 47), 40)
    assert (source.classes[0], source.classes[24], source.classes[45]) == ("C2", "C4", "A5")
    holds(source)
    truth = source.samples.truth()
    assert truth.shape == (40, 31, 47)
    assert truth.dtype == np.float32
    for sample, target in zip(source.samples, truth, strict=True):
        heard = source.read(sample)
        np.testing.assert_array_equal(heard[:, -1], target[:, -1])
        count = int(target[:, -1].sum())
        assert not heard[0, :-1].any()
        np.testing.assert_array_equal(heard[1:count, :-1], target[: count - 1, :-1])
        assert target[:count, :-1].sum(axis=1).tolist() == [4] * count
        assert not target[count:].any()
    shorter = opened(tmp_path, "chorales", path=str(pieces), length=20)  # what is read has another shape, and so another hash
    assert not {each.sha256 for each in shorter.samples} & {each.sha256 for each in source.samples}


def test_what_is_said_of_a_piece_ends_with_it(executed: Any, pieces: Path) -> None:
    small = ["model=lstm", "model.width=4", "model.pool=none", "freeze=none", "trainer.max_epochs=1", "hardware=cpu", "hardware.workers=0"]
    run = executed(["task=frames", "dataset=chorales", f"dataset.path={pieces}", *small])
    rows = polars.read_parquet(run.folder / "predictions.parquet").to_dicts()
    assert len(rows) == 8
    assert [len(row["predicted"].split()) for row in rows] == [len(row["truth"].split()) for row in rows]
    assert min(len(row["truth"].split()) for row in rows) < 31, "some are padded"


def test_machines_learn_music_and_play_on_by_sampling(executed: Any, pieces: Path, tmp_path: Path, capsys: Any) -> None:
    small = ["model.width=6", "model.depth=2", "model.window=3", "model.pool=none", "model.betas=20", "hardware=cpu", "hardware.workers=0"]
    small += ["freeze=greedy", "freeze.pretrain=1", "trainer.max_epochs=3", "model=dbn"]
    run = executed(["task=frames", "dataset=chorales", f"dataset.path={pieces}", *small])
    told = {row["metric"] for row in Metrics(run.folder / "metrics.csv").rows()}
    assert {f"val/{name}" for name in ("reconstruction", "free_energy", "log_likelihood", "ais_error", "ais_chains", "nll")} <= told
    words = ["generate", str(run.folder.path), "--prime", "C4 E4", "--seconds", "3", "--gibbs", "5", "--output", str(tmp_path)]
    assert cli.main(words) == 0
    assert len(midi.read(tmp_path / "generated-0.mid", "quarter")) == 2 + 4
    first = (tmp_path / "generated-0.mid").read_bytes()
    assert cli.main([*words[:-4], "--output", str(tmp_path)]) == 0
    assert (tmp_path / "generated-0.mid").read_bytes() != first, "the head tells other frames than the machine"
    assert cli.main([*words, "--gibbs", "-1"]) == 2
    assert "--gibbs = -1" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["task=frames", "model.pool=mean"], ["task=frames"]])
def test_a_dbn_that_answers_once_is_refused_for_frames(words: list[str], pieces: Path) -> None:
    given = [*words, "model=dbn", "dataset=chorales", f"dataset.path={pieces}", "freeze=greedy", "freeze.pretrain=1"]
    with pytest.raises(UserError, match=r"model\.pool = mean: truth of kind frames needs none"):
        sweep.plan(config.Composer().jobs(given, multirun=False))


def test_settings_of_one_melody_share_a_split(tmp_path: Path, pieces: Path) -> None:
    for seed in range(3):
        source = opened(tmp_path, "chorales", path=str(pieces), split_seed=seed)
        split = {sample.id: sample.split for sample in source.samples}
        assert all(split[f"piece{number:02d}"] == split[f"piece{number + 20}"] for number in range(20))
        assert source.sizes() == {"train": 24, "val": 8, "test": 8}


def test_copies_in_other_keys_are_trains_alone(tmp_path: Path, pieces: Path) -> None:
    plain = opened(tmp_path, "chorales", path=str(pieces))
    source = opened(tmp_path, "chorales", path=str(pieces), transpose=5)
    rolls = {sample.id: source.steps(sample).astype(int) for sample in source.samples}
    for split in ("val", "test"):
        assert [each.sha256 for each in source.split(split)] == [each.sha256 for each in plain.split(split)]
    expected = set()
    for sample in plain.split("train"):
        sounding = np.flatnonzero(plain.steps(sample).any(axis=0))
        for semitones in range(-5, 6):
            if sounding[0] + semitones >= 0 and sounding[-1] + semitones < 46:
                expected.add(f"{sample.id}{semitones:+d}" if semitones else sample.id)
                moved = np.argwhere(plain.steps(sample)) + np.array([0, semitones])
                name = f"{sample.id}{semitones:+d}" if semitones else sample.id
                np.testing.assert_array_equal(np.argwhere(rolls[name]), moved)
    assert {sample.id for sample in source.split("train")} == expected
    assert len(plain.split("train")) < len(expected) < 11 * len(plain.split("train"))  # some copies would leave the pitches
    holds(source)


def test_broken_scores_are_told_or_left_out(tmp_path: Path, pieces: Path) -> None:
    broken = pieces / "broken.xml"
    broken.write_text("<score-partwise>")
    [problem] = refused(tmp_path, "chorales", path=str(pieces))
    assert problem.key == str(broken)
    assert "dataset.on_error=skip" in problem.remedy
    source = opened(tmp_path, "chorales", path=str(pieces), on_error="skip")
    assert (len(source.samples), [each.key for each in source.skipped]) == (40, [str(broken)])
    broken.write_text(choral([70, 71, 72]))  # mended: what was found before is not believed
    assert len(opened(tmp_path, "chorales", path=str(pieces)).samples) == 41
    broken.rename(pieces / "piece00.xml")
    [problem] = refused(tmp_path, "chorales", path=str(pieces))
    assert "another ending" in problem.remedy
    [problem] = refused(tmp_path, "chorales", path=str(pieces), classes=["C2", "C#2"])
    assert problem.key == "dataset.classes"


def test_few_pieces_are_refused_in_the_words_of_music(tmp_path: Path) -> None:
    (tmp_path / "one.xml").write_text(choral(list(range(66, 78))))
    [problem] = refused(tmp_path, "chorales", path=str(tmp_path))
    assert "has 1 piece, but" in problem.remedy
    (tmp_path / "one.xml").unlink()
    [problem] = refused(tmp_path, "chorales", path=str(tmp_path))
    assert "holds no score of 4 parts" in problem.remedy


@pytest.mark.engines
@pytest.mark.skipif(find_spec("music21") is None, reason="music21's corpus is not there")
def test_chorales(tmp_path: Path) -> None:
    source = opened(tmp_path, "chorales")
    assert sum(source.sizes().values()) == 365
    sounding = np.flatnonzero(source.samples.truth()[:, :, :-1].any(axis=(0, 1)))
    assert (sounding[0], sounding[-1]) == (0, 45)  # MIDI 36 to 81, all of them are used
    splits = defaultdict(set)
    for sample in source.samples:
        splits[sample.group].add(sample.split)
    assert {len(each) for each in splits.values()} == {1}


@pytest.mark.engines
@pytest.mark.skipif(find_spec("music21") is None, reason="music21 is not there")
def test_scores_are_those_that_music21_reads() -> None:
    from music21 import converter

    folder = chorales._folder(spec("chorales"))
    for file in sorted(file for file in folder.iterdir() if file.suffix in scores.SUFFIXES)[::14]:
        score = converter.parse(file, forceSource=True)
        theirs = Counter(
            (number, pitch.midi, round(float(note.offset) * scores.TICKS), round(float(note.offset + note.quarterLength) * scores.TICKS))
            for number, part in enumerate(score.parts)
            for note in part.toSoundingPitch().flatten().notes
            for pitch in note.pitches
            if note.quarterLength > 0
        )
        assert Counter(map(tuple, scores.read(file).notes)) == theirs, file.name


# ---- texts


def texts(root: Path, count: int = 20, *, split: str = "") -> Path:
    """Class folders of .txt files: what is good, and what is bad."""
    for label in ("bad", "good"):
        folder = root / split / label
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / f"{number:02d}.txt").write_text(f"{label.title()} {label}{chr(97 + number)} it's {'so ' * (number % 5)}!\n")
    return root


def said(source: Any, sample: Sample) -> list[str]:
    return [source.tokens[number] for number in source.read(sample) if number]


def test_texts_are_words_that_train_knows(tmp_path: Path) -> None:
    source = opened(tmp_path, "text", path=str(texts(tmp_path / "data")), floor=1)
    assert (source.input, source.kind, source.classes, source.shape) == ("tokens", "class", ["bad", "good"], (8,))
    assert source.tokens[:2] == ["", "<unknown>"]
    train = {word for sample in source.split("train") for word in said(source, sample)}
    assert train == set(source.tokens[2:])  # every known word is one of train's, and none of train's is unknown
    for sample in source.split("test"):
        number = Path(sample.id).stem
        label = source.classes[sample.label]
        assert said(source, sample) == [label, "<unknown>", "it's", *["so"] * (int(number) % 5), "!"]
    holds(source)


def test_the_vocabulary_has_a_floor_and_a_bound() -> None:
    heard = [["b", "a", "a"], ["b", "c", "a"], ["d", "d"]]
    assert text.vocabulary(heard, 1, 9) == ["", "<unknown>", "a", "b", "d", "c"]
    assert text.vocabulary(heard, 2, 9) == ["", "<unknown>", "a", "b", "d"]
    assert text.vocabulary(heard, 2, 2) == ["", "<unknown>", "a", "b"]


@pytest.mark.parametrize(
    ("given", "level", "found"),
    [
        ("Don't stop; it’s 3.5 <b>Öl</b>", "word", ["don't", "stop", ";", "it’s", "3", ".", "5", "<", "b", ">", "öl", "<", "/", "b", ">"]),
        ("O\u0308l\n", "char", ["Ö", "l", "\n"]),
        (" \n", "word", []),
    ],
)
def test_tokens(given: str, level: str, found: list[str]) -> None:
    assert text.tokens(given, level) == found
    assert text.tokens(given, level, 2) == found[:2]


def test_an_empty_text_is_one_unknown_token(tmp_path: Path) -> None:
    texts(tmp_path / "data")
    (tmp_path / "data" / "bad" / "00.txt").write_text("")
    source = opened(tmp_path, "text", path=str(tmp_path / "data"))
    [empty] = [sample for sample in source.samples if sample.id == "bad/00.txt"]
    assert said(source, empty) == ["<unknown>"]
    holds(source)


def test_long_texts_are_cut_and_that_is_told(tmp_path: Path) -> None:
    source = opened(tmp_path, "text", path=str(texts(tmp_path / "data")), length=6)
    assert source.shape == (6,)
    assert source.remarks == [
        "16 of 40 texts are longer than dataset.length=6 steps, and were cut"
    ]  # 4 + 3 and 4 + 4 words, of 4 in 20 each


def test_a_vocabulary_goes_from_one_set_to_the_next(tmp_path: Path) -> None:
    first = opened(tmp_path, "text", path=str(texts(tmp_path / "first")), floor=1)
    run = tmp_path / "run"
    run.mkdir()
    (run / text.VOCABULARY).write_text(json.dumps(first.tokens))
    second = texts(tmp_path / "second")
    (second / "bad" / "00.txt").write_text("Bad thing!")
    source = opened(tmp_path, "text", path=str(second), vocabulary=str(run))
    assert source.tokens == first.tokens
    [changed] = [sample for sample in source.samples if sample.id == "bad/00.txt"]
    assert said(source, changed) == ["bad", "<unknown>", "!"]
    assert "of train's tokens are not in the vocabulary that was given" in source.remarks[-1]
    for wrong in ("[]", '["a", "b"]', '{"a": 1}', "[", '["", "<unknown>", "a", "a"]'):
        (run / text.VOCABULARY).write_text(wrong)
        assert refused(tmp_path, "text", path=str(second), vocabulary=str(run))[0].key == "dataset.vocabulary"
    assert "no such" in refused(tmp_path, "text", path=str(second), vocabulary=str(run / "x"))[0].remedy


def test_texts_that_differ_in_numbers_alone_share_a_split(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for label in ("bad", "good"):
        (root / label).mkdir(parents=True)
        for number in range(40):
            word = f"{label} {chr(97 + number // 8) * 5}"
            (root / label / f"{number:02d}.txt").write_text(
                f"{word} {number}!" if number % 2 else f"{word.upper()}  no. {number}"[: len(word)]
            )
    source = opened(tmp_path, "text", path=str(root))
    splits = defaultdict(set)
    for sample in source.samples:
        splits[sample.label, int(Path(sample.id).stem) // 8].add(sample.split)
    assert {len(each) for each in splits.values()} == {1}
    assert min(source.sizes().values()) > 0


def test_split_folders_of_texts_are_kept(tmp_path: Path) -> None:
    root = tmp_path / "data"
    texts(root, 20, split="train")
    texts(root, 6, split="test")
    source = opened(tmp_path, "text", path=str(root))
    assert source.sizes() == {"train": 34, "val": 6, "test": 12}
    assert all(sample.id.startswith("test/") for sample in source.split("test"))


LONG = "or"  # so many of them tell texts apart


def table(file: Path, lines: list[str], header: str = "text,label,split") -> Path:
    file.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return file


def test_a_csv_of_texts(tmp_path: Path) -> None:
    splits = ["valid"] * 4 + ["test"] * 4 + ["train"] * 12
    lines = [f'"so, {number * LONG}\nand ""that""",{number % 2},{split}' for number, split in enumerate(splits)]
    source = opened(tmp_path, "text", path=str(table(tmp_path / "a.csv", lines)), split="split", level="char")
    assert (source.sizes(), source.classes) == ({"train": 12, "val": 4, "test": 4}, ["0", "1"])
    assert "".join(said(source, source.split("val")[0])) == 'so, \nand "that"'
    made = opened(tmp_path, "text", path=str(tmp_path / "a.csv"))
    assert sum(made.sizes().values()) == 20
    assert min(made.sizes().values()) > 0
    semicolons = table(tmp_path / "b.csv", ["a, b;x", "c;x", "d;y", "e;y"], "text;label")
    source = opened(tmp_path, "text", path=str(semicolons), val=0.0, test=0.0, floor=1)
    assert said(source, source.samples[0]) == ["a", ",", "b"]


@pytest.mark.parametrize(
    ("lines", "values", "where", "what"),
    [
        (["a,b,train", "a,b"], {}, 3, "has 2 fields where the header has 3"),
        (["a,,train"], {}, 2, "has no class"),
        (["a,b,tset"], {"split": "split"}, 2, "is no split"),
        (["a,b,train"], {"text": "txt"}, 1, "has no column txt (dataset.text); did you mean text?"),
        (['a,b,train\n"x"y,b,train'], {}, 3, "is no sound csv"),
    ],
)
def test_broken_lines_of_a_csv_are_named(tmp_path: Path, lines: list[str], values: dict[str, Any], where: int, what: str) -> None:
    file = table(tmp_path / "a.csv", lines)
    [problem] = refused(tmp_path, "text", path=str(file), **values)
    assert problem.key == f"{file}:{where}"
    assert what in problem.remedy


def test_texts_of_other_encodings_are_named(tmp_path: Path) -> None:
    root = texts(tmp_path / "data")
    (root / "good" / "01.txt").write_bytes("one\nzwölf".encode("latin-1"))
    [problem] = refused(tmp_path, "text", path=str(root))
    assert problem.key == f"{root / 'good' / '01.txt'}:2"
    assert "is no UTF-8 (byte 0xf6)" in problem.remedy
    source = opened(tmp_path, "text", path=str(root), on_error="skip")
    assert (len(source.samples), len(source.skipped)) == (39, 1)
    file = tmp_path / "a.csv"
    file.write_bytes("text,label\na,b\nö,b\n".encode("latin-1"))
    assert refused(tmp_path, "text", path=str(file))[0].key == f"{file}:3"


def test_folders_of_texts_are_told_as_such(tmp_path: Path) -> None:
    root = texts(tmp_path / "data")
    for file in (root / "bad").iterdir():
        file.rename(file.with_suffix(".text"))
    [problem] = refused(tmp_path, "text", path=str(root))
    assert "holds no .txt file" in problem.remedy
    [problem] = refused(tmp_path, "text", path=str(root), classes=["good", "bed"])
    assert "did you mean bad?" in problem.remedy
    [problem] = refused(tmp_path, "text", path=str(root / "good"))
    assert "lay texts out as" in problem.remedy
    (root / "bad" / "x.txt").symlink_to(CONF / "text.yaml")
    [problem] = refused(tmp_path, "text", path=str(root))
    assert "link that leaves the folder" in problem.remedy


# ---- mails

HEAD = "From somewhere Thu Aug 22 2002\nReceived: from secret.example\nSubject: leak\nMIME-Version: 1.0\n"
PARTS = f"""{HEAD}Content-Type: multipart/mixed; boundary=XX

preamble
--XX
Content-Type: text/html; charset=no-such-charset
Content-Transfer-Encoding: quoted-printable

<b>caf=E9</b>
--XX
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: base64
X-Secret: leak

{base64.b64encode("zwölf".encode()).decode()}
--XX
Content-Type: text/plain
Content-Disposition: attachment; filename=a.txt

attached
--XX
Content-Type: message/rfc822

Subject: leak

forwarded
--XX--
"""


@pytest.mark.parametrize(
    ("mail", "found"),
    [
        (f"{HEAD}\nplain\nwords\n", ["plain", "words"]),
        (PARTS, ["<b>café</b>", "zwölf", "forwarded"]),
        (f"{HEAD}Content-Type: image/gif\n\nR0lGOD\n", []),
        (HEAD, []),
    ],
)
def test_of_a_mail_only_its_texts_are_left(mail: str, found: list[str]) -> None:
    assert text.body(mail.encode()).split() == found


def test_parts_within_parts_without_end_are_text() -> None:
    depth = 3000
    mail = "".join(f"Content-Type: multipart/mixed; boundary=b{n}\n\n--b{n}\n" for n in range(depth)) + "\nhello\n"
    assert text.body(mail.encode()).endswith("hello\n")


def test_halves_of_characters_do_no_harm() -> None:
    mail = b"Content-Type: text/plain; charset=utf-7\n\n+2AA-a"  # a lone surrogate
    assert text.body(mail).encode().endswith(b"a")


def mails(root: Path) -> Path:
    for folder, label in text.MAIL.items():
        (root / folder).mkdir(parents=True)
        for number in range(8):
            words = f"{label} {folder.translate(str.maketrans('12', 'xy'))} {chr(97 + number) * 4}"
            (root / folder / f"{number:05d}.abc.txt").write_text(f"{HEAD}\n{words}\n")
            (root / folder / f"{number:05d}.abc.json").write_text("{}")
    return root


@pytest.mark.parametrize("inside", ["", "data", "package/data"])
def test_mails_are_read_from_the_package_s_folder(tmp_path: Path, inside: str) -> None:
    mails(tmp_path / "spam" / inside)
    source = opened(tmp_path, "spam", path=str(tmp_path / "spam"), floor=1)
    assert Counter(source.classes[sample.label] for sample in source.samples) == {"ham": 24, "spam": 16}
    assert not {"secret", "leak", "received", "subject"} & set(source.tokens)
    assert source.remarks == ["24 of 4,150 ham mails are there", "16 of 1,896 spam mails are there"]
    holds(source)


def test_missing_mails_are_asked_for(tmp_path: Path) -> None:
    mails(tmp_path / "spam")
    for file in (tmp_path / "spam" / "spam-2").iterdir():
        file.unlink()
    (tmp_path / "spam" / "spam-2").rmdir()
    [problem] = refused(tmp_path, "spam", path=str(tmp_path / "spam"))
    assert "has no spam-2" in problem.remedy
    [problem] = refused(tmp_path, "spam")
    assert problem.given == str(tmp_path / "datasets" / "spam")


# ---- what is remembered


def test_what_was_worked_out_is_remembered_until_a_file_changes(tmp_path: Path) -> None:
    source, code, place = tmp_path / "a", tmp_path / "code.py", tmp_path / "cache" / "memo.json"
    source.write_text("one")
    code.write_text("1")
    calls = []

    def ask(keep: bool = True) -> Any:
        return memo.remembered(place, [source], str(code), lambda: (calls.append(0) or source.read_text(), keep))

    assert (ask(False), ask(False), len(calls)) == ("one", "one", 2)  # what is not whole is not kept
    assert (ask(), ask(), len(calls)) == ("one", "one", 3)
    source.write_text("two!")
    assert (ask(), ask(), len(calls)) == ("two!", "two!", 4)
    code.write_text("2")
    assert (ask(), ask(), len(calls)) == ("two!", "two!", 5)
    for damage in ("", "[]", '{"key": 1}'):
        place.write_text(damage)
        assert ask() == "two!"
    assert len(calls) == 8
    place.unlink()
    place.mkdir()  # nothing can be written there
    assert ask() == "two!"


def test_what_can_t_be_held_is_refused_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {str(number): np.zeros(50) for number in range(10)}
    monkeypatch.setattr(steps, "MOST", 600)
    with pytest.raises(UserError, match=r"dataset\.length=30 or less"):
        steps.cut(rows, None, "texts", 2)
    assert steps.cut(rows, 30, "texts", 2)[1] == 30
