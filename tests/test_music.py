"""Music: rolls and MIDI files say the same, damaged files are told in a line, and a net plays on as it was asked to."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from regraft import generating, midi
from regraft.errors import UserError
from regraft.models.recurrent import FrameHead, build
from regraft.report import rolls

mido = pytest.importorskip("mido")
pytestmark = pytest.mark.usefixtures("one_thread")
SHARED = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

ROLLS = arrays.arrays(bool, st.tuples(st.integers(0, 9), st.just(midi.PITCHES)), elements=st.booleans(), fill=st.just(False))


def sounding(roll: np.ndarray) -> list[list[int]]:
    """The pitches of each step."""
    return [np.flatnonzero(row).tolist() for row in roll]


def file_of(path: Path, *tracks: list[Any], **header: Any) -> Path:
    file = mido.MidiFile(**{"ticks_per_beat": 96} | header)
    for track in tracks:
        file.tracks.append(mido.MidiTrack(track))
    file.save(path)
    return path


def on(note: int, time: int, **more: Any) -> Any:
    return mido.Message("note_on", note=note, time=time, **more)


def off(note: int, time: int, **more: Any) -> Any:
    return mido.Message("note_off", note=note, time=time, **more)


# Files


@SHARED
@given(roll=ROLLS, step=st.sampled_from(sorted(midi.STEPS)), tempo=st.floats(20, 300))
def test_what_was_written_is_read_again(roll: np.ndarray, step: str, tempo: float, tmp_path: Path) -> None:
    midi.write(roll, tmp_path / "roll.mid", step, tempo)
    assert (midi.read(tmp_path / "roll.mid", step) == roll).all()
    assert [path.name for path in tmp_path.iterdir()] == ["roll.mid"]


def test_a_file_lasts_as_long_as_its_tempo_says(tmp_path: Path) -> None:
    midi.write(midi.notes("C4 D4 E4 -"), tmp_path / "a.mid", "quarter", 120)
    assert mido.MidiFile(tmp_path / "a.mid").length == pytest.approx(2.0)  # s: four quarters
    midi.write(midi.notes("C4 D4 E4 -"), tmp_path / "a.mid", "sixteenth", 60)
    assert mido.MidiFile(tmp_path / "a.mid").length == pytest.approx(1.0)


def test_a_held_note_is_struck_once(tmp_path: Path) -> None:
    midi.write(midi.notes("C4:3 C4+E4 -"), tmp_path / "a.mid", "quarter", 90)
    [track] = mido.MidiFile(tmp_path / "a.mid").tracks
    assert [(m.type, m.note, m.time) for m in track if not m.is_meta] == [
        ("note_on", 60, 0),
        ("note_on", 64, 3 * midi.TICKS),
        ("note_off", 60, midi.TICKS),
        ("note_off", 64, 0),
    ]


def test_tracks_sound_together_on_the_grid(tmp_path: Path) -> None:
    """Begins and ends go to the nearest step, a short note has a step, a strike of no loudness ends a note, drums are no pitches."""
    upper = [on(60, 0), on(60, 90, velocity=0), on(64, 100), off(64, 10), on(67, 184), mido.MetaMessage("end_of_track", time=96)]
    lower = [on(36, 96, channel=1), off(36, 96, channel=1), on(40, 0, channel=midi.DRUMS), off(40, 480, channel=midi.DRUMS)]
    roll = midi.read(file_of(tmp_path / "a.mid", upper, lower), "quarter")
    assert sounding(roll) == [[60], [36], [64], [], [67], [], []]
    fine = midi.read(tmp_path / "a.mid", "sixteenth")
    assert sounding(fine)[:10] == [[60]] * 4 + [[36]] * 4 + [[64], []]


def test_notes_of_one_pitch_end_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    roll = midi.read(file_of(tmp_path / "a.mid", [on(60, 0), on(60, 96), off(60, 96), off(60, 96)]), "quarter")
    assert sounding(roll) == [[60], [60], [60]]


@pytest.fixture
def good(tmp_path: Path) -> bytes:
    midi.write(midi.notes("C4+E4+G4:2 D4 F#3:3"), tmp_path / "good.mid", "quarter", 90)
    return (tmp_path / "good.mid").read_bytes()


@SHARED
@given(data=st.data())
def test_damaged_files_are_read_or_refused_in_a_line(data: st.DataObject, good: bytes, tmp_path: Path) -> None:
    where = data.draw(st.integers(0, len(good) - 1))
    broken = bytearray(good[: data.draw(st.integers(0, len(good)))] if data.draw(st.booleans()) else good)
    if where < len(broken):
        broken[where] = data.draw(st.integers(0, 255))
    (tmp_path / "broken.mid").write_bytes(broken)
    try:
        roll = midi.read(tmp_path / "broken.mid", "sixteenth")
        assert roll.shape[1] == midi.PITCHES
        assert len(roll) <= midi.LONGEST
    except UserError as error:
        [problem] = error.problems
        assert problem.key == str(tmp_path / "broken.mid")
        assert "\n" not in str(problem)


def test_files_that_can_t_be_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            midi.read(path, "quarter")
        return str(caught.value)

    assert "No such file" in told(tmp_path / "none.mid")
    assert told(tmp_path).endswith("can't be read (Is a directory)")
    (tmp_path / "text.mid").write_text("C4 E4 G4")
    assert "no whole Standard MIDI file" in told(tmp_path / "text.mid")
    (tmp_path / "large.mid").write_bytes(bytes(midi.BYTES + 1))
    assert "larger than 1 MB" in told(tmp_path / "large.mid")
    assert "type 0 or 1" in told(file_of(tmp_path / "two.mid", [on(60, 0)], type=2))
    film = file_of(tmp_path / "film.mid", [on(60, 0)]).read_bytes()
    (tmp_path / "film.mid").write_bytes(film[:12] + b"\xe7\x28" + film[14:])  # 25 frames a second, 40 ticks each
    assert "timed in ticks" in told(tmp_path / "film.mid")
    assert "at most 16,384" in told(file_of(tmp_path / "long.mid", [on(60, 2**27), off(60, 1)], ticks_per_beat=1))
    monkeypatch.setitem(__import__("sys").modules, "mido", None)
    assert "pip install 'regraft[music]'" in told(tmp_path / "two.mid")


# Notes


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("C4 E4 G4", [[60], [64], [67]]),
        ("60,64,67", [[60], [64], [67]]),
        (" c4,  e4\n", [[60], [64]]),
        ("C4:2 E4:1", [[60], [60], [64]]),
        ("C4+E4+G4:2 - Bb3", [[60, 64, 67]] * 2 + [[], [58]]),
        ("Cb4 B#3 F##2 Abb5", [[59], [60], [43], [79]]),
        ("C-1 G9 0 127", [[0], [127], [0], [127]]),
        ("-:2", [[], []]),
        ("", []),
    ],
)
def test_a_line_of_notes(text: str, steps: list[list[int]]) -> None:
    assert sounding(midi.notes(text)) == steps


@given(st.integers(0, 127))
def test_each_pitch_has_its_name(number: int) -> None:
    assert midi.pitch(midi.name(number)) == number


@pytest.mark.parametrize("text", ["H4", "C", "C10", "128", "C4:0", "C4:", "C4:-1", "C4:x", "G#9", "Cb-1", "C4+", "+", "C4;E4", "é4", "٣"])
def test_what_is_no_note_is_told(text: str) -> None:
    with pytest.raises(UserError, match="would work") as caught:
        midi.notes(f"E4 {text}", "--prime")
    assert caught.value.problems[0].key == "--prime"


def test_notes_are_bounded() -> None:
    assert len(midi.notes(f"C4:{midi.LONGEST}")) == midi.LONGEST
    with pytest.raises(UserError, match="at most"):
        midi.notes(f"C4:{midi.LONGEST} C4")


# Playing on


def following(history: np.ndarray) -> np.ndarray:
    """Surely the note above the highest of the last step."""
    p = np.zeros(history.shape[1])
    p[(np.flatnonzero(history[-1]).max(initial=-1) + 1) % len(p)] = 1.0
    return p


def test_what_is_sure_is_played() -> None:
    prime = np.zeros((2, 5), bool)
    prime[1, 1] = True
    roll = generating.generate(following, prime, 4, seed=3)
    assert sounding(roll) == [[], [1], [2], [3], [4], [0]]


def test_a_seed_gives_one_music_however_long_it_is() -> None:
    def even(history: np.ndarray) -> np.ndarray:
        return np.full(history.shape[1], 0.3)

    prime = np.zeros((1, 20), bool)
    long = generating.generate(even, prime, 40, seed=1, polyphony=20)
    assert (generating.generate(even, prime, 10, seed=1, polyphony=20) == long[:11]).all()
    assert not (generating.generate(even, prime, 40, seed=2, polyphony=20) == long).all()
    assert long[1:].mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 800))
    cold = generating.generate(even, prime, 40, seed=1, temperature=0.1, polyphony=20)
    assert cold[1:].mean() < 0.01  # odds of 3 to 7 to the tenth power
    warm = generating.generate(even, prime, 40, seed=1, temperature=1e6, polyphony=20)
    assert warm[1:].mean() == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / 800))


def test_of_too_many_notes_the_likeliest_are_kept() -> None:
    p = np.array([1.0, 0.9999, 1e-12, 0.99999, 1.0])
    roll = generating.generate(lambda history: p, np.zeros((0, 5), bool), 5, seed=0, polyphony=3)
    assert sounding(roll) == [[0, 3, 4]] * 5


def test_a_net_hears_each_step_one_late() -> None:
    """The odds that `predictor` tells are those that training has seen: the answer at step t is to what sounded before t."""
    torch.manual_seed(0)
    backbone = build("lstm", 2, 6, False, 0.0, 1, "none", {"kind": "sequence", "shape": [9, 5], "tokens": 0}).module.eval()
    net = nn.Sequential(backbone, FrameHead(7, 4, 0.0)).eval()
    piece = torch.rand(9, 4, generator=torch.Generator().manual_seed(1)) > 0.5
    x = torch.zeros(1, 12, 5)  # as a set gives it: one step late, then padded
    x[0, 1:9, :-1], x[0, :9, -1] = piece[:-1].float(), 1
    trained = net(x)[0].sigmoid().detach().numpy()
    predict = generating.predictor(net)
    for t in range(9):
        np.testing.assert_allclose(predict(piece[:t].numpy()), trained[t], rtol=1e-5)


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """What `write` asks of a finished run."""
    torch.manual_seed(0)
    names = [midi.name(number) for number in range(48, 73)]
    backbone = build("gru", 1, 8, False, 0.0, 1, "none", {"kind": "sequence", "shape": [9, 26], "tokens": 0}).module
    spec = SimpleNamespace(task=SimpleNamespace(name="frames", KIND="frames"), dataset=SimpleNamespace(step="sixteenth"))
    spec.model = SimpleNamespace(name="gru")
    chain = nn.Sequential(backbone, FrameHead(9, 25, 0.0)).eval()
    return SimpleNamespace(settings=spec, classes=names, chain=chain, folder=SimpleNamespace(path=tmp_path / "run"))


def test_a_run_plays_on_from_notes_and_from_a_file(run: Any, tmp_path: Path) -> None:
    from PIL import Image

    paths = generating.write(run, "C4+E4:2 G4", 4.0, 7, tmp_path / "out", tempo=60)
    assert [path.name for path in paths] == ["generated-7.mid", "generated-7.png"]
    roll = midi.read(paths[0], "sixteenth")
    assert len(roll) == 3 + 4 * 4  # s of four sixteenths each
    assert sounding(roll)[:3] == [[60, 64], [60, 64], [67]]
    assert roll.sum(1).max() <= generating.POLYPHONY
    with Image.open(paths[1]) as picture:
        assert picture.width > 700
    again = generating.write(run, "C4+E4:2 G4", 4.0, 7, tmp_path / "again", tempo=60)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]
    longer = midi.read(generating.write(run, str(paths[0]), 2.0, 8, tmp_path / "out", tempo=60)[0], "sixteenth")
    assert (longer[: len(roll)] == roll).all()
    assert len(longer) == len(roll) + 8


def test_what_can_t_be_played_is_told(run: Any, tmp_path: Path) -> None:
    def told(prime: str = "C4", seconds: float = 1.0, **more: Any) -> str:
        with pytest.raises(UserError) as caught:
            generating.write(run, prime, seconds, 0, tmp_path / "out", **more)
        return str(caught.value)

    assert told("C2 C4 C9") == "--prime = C2 C4 C9: the net has learnt no C2, C9; notes from C3 to C5 would work"
    assert told("X4").startswith("--prime = X4: X4 is no note")
    assert told("none.mid").startswith("none.mid: can't be read")
    assert told(seconds=0.0).startswith("--seconds = 0.0: more than 0")
    assert told(seconds=math.nan).startswith("--seconds")
    assert told(tempo=-1.0).startswith("--tempo")
    assert told(tempo=3.0).startswith("--tempo = 3.0: 10 to 1000")
    assert told("C4+E4+G4 " * 40 + "X").startswith("--prime = C4+E4+G4")  # too long for a file's name
    assert "X is no note" in told("C4+E4+G4 " * 40 + "X")
    assert "at most" in told(seconds=1e6)
    run.classes[0] = "cat"
    assert "dataset=chorales" in told()
    run.settings.task = SimpleNamespace(name="classify", KIND="class")
    assert re.search(r"run = classify: it learns no music", told())
    assert not (tmp_path / "out").exists()


def test_the_picture_shows_both_parts_in_their_colours() -> None:
    names = [midi.name(number) for number in range(48, 73)]
    roll = np.zeros((16, 25), bool)
    roll[:, 12] = True  # a note that is held from the given part into the other
    picture = np.asarray(rolls.picture(roll, 4, names, 4, "A test"))
    row = picture[rolls.HEAD + rolls.ROW + rolls.ROW // 2]  # px: the middle of the sounding row, which has one above and below it
    given = (row == (0, 0x72, 0xB2)).all(-1)
    played = (row == (0xD5, 0x5E, 0)).all(-1)
    assert played.sum() == pytest.approx(3 * given.sum(), rel=0.05)
    assert np.flatnonzero(given).max() < np.flatnonzero(played).min()


@pytest.mark.parametrize(("steps", "prime"), [(0, 0), (1, 1), (3000, 5)])
def test_any_length_has_a_picture(steps: int, prime: int) -> None:
    roll = np.zeros((steps, 25), bool)
    roll[:, ::7] = True
    picture = rolls.picture(roll, prime, [midi.name(number) for number in range(48, 73)], 16, "A test")
    assert rolls.WIDTHS[0] < picture.width < rolls.WIDTHS[1] + 200
