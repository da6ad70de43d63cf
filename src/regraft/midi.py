"""Music as a roll, which notes sound at each step, read from and written to Standard MIDI files, or read from a line of notes.

A roll is bool [T, 128]: T steps of a fixed length, MIDI's pitches (60 is C4, the middle C). A note that sounds at successive steps is held.
"""

from __future__ import annotations

import io
import re
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from regraft import files
from regraft.errors import Problem, UserError, brief

PITCHES = 128
STEPS = {"quarter": 1, "sixteenth": 4}  # steps of a quarter note
TICKS = 480  # of a quarter note, in files that are written
LOUDNESS = 80  # of 127, of each note that is written
DRUMS = 9  # the channel whose notes are no pitches
BYTES = 2**20  # of the largest file that is read: a symphony has a tenth of it
LONGEST = 2**14  # steps: over an hour of sixteenths at 60 quarters a minute
SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
SHARPS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
EXAMPLE = "'C4 E4 G4', 60,64,67 or 'C4+E4:2 -:1 Bb3:1' (+: together, :2: two steps, -: silence) would work"


def name(pitch: int) -> str:
    """60 -> C4"""
    return f"{SHARPS[pitch % 12]}{pitch // 12 - 1}"


def pitch(text: str) -> int:
    """C4, c4, F#3, Bb3, or 0 to 127 -> the pitch. Raises ValueError for anything else."""
    if re.fullmatch(r"\d{1,3}", text, re.ASCII):
        number = int(text)
    else:
        found = re.fullmatch(r"([A-Ga-g])(##?|bb?)?(-1|\d)", text, re.ASCII)
        if found is None:
            raise ValueError(f"{text} is no note")
        letter, accidental, octave = found.groups(default="")
        number = SEMITONES[letter.upper()] + accidental.count("#") - accidental.count("b") + 12 * (int(octave) + 1)
    if not 0 <= number < PITCHES:
        raise ValueError(f"{text} is no pitch of MIDI, which are 0 to 127, C-1 to G9")
    return number


def notes(text: str, key: str = "notes") -> np.ndarray:
    """`C4 E4 G4`, `60,64,67`, `C4+E4:2 -:1` -> bool [T, 128]; a note lasts a step where nothing is said.

    Raises UserError about `key` for what is no note, or for too many steps.
    """
    rows: list[tuple[list[int], int]] = []
    for word in text.replace(",", " ").split():
        chord, colon, steps = word.partition(":")
        if colon and not re.fullmatch(r"0*[1-9]\d{0,4}", steps, re.ASCII):
            raise UserError(Problem(key, text[:100], f"{word[:40]}: how many steps a note lasts is a whole number from 1; {EXAMPLE}"))
        try:
            rows.append(([] if chord == "-" else [pitch(each) for each in chord.split("+")], int(steps or 1)))
        except ValueError as error:
            raise UserError(Problem(key, text[:100], f"{str(error)[:80]}; {EXAMPLE}")) from None
    whole = sum(lasts for _, lasts in rows)
    _short(whole, key, text[:100])
    roll = np.zeros((whole, PITCHES), dtype=bool)
    at = 0
    for pitches, lasts in rows:
        roll[at : at + lasts, pitches] = True
        at += lasts
    return roll


def read(path: Path, step: str) -> np.ndarray:
    """A file's notes on the grid of `step` (quarter or sixteenth) -> bool [T, 128]; drums are left out.

    Begins and ends are rounded to the nearest step, and a note sounds for one step at least. Raises UserError for a file that can't be
    read, is damaged, or is too large.
    """
    mido = library(str(path))
    try:
        with path.open("rb") as opened:
            data = opened.read(BYTES + 1)
    except OSError as error:
        raise UserError(Problem(str(path), None, f"can't be read ({error.strerror})")) from None
    if len(data) > BYTES:
        raise UserError(Problem(str(path), None, f"larger than {BYTES / 2**20:g} MB; a shorter file would work"))
    try:
        file = mido.MidiFile(file=io.BytesIO(data))
    except Exception as error:  # a damaged file may raise anything in its parser
        raise UserError(Problem(str(path), None, f"no whole Standard MIDI file ({brief(error)}); write it again")) from None
    if file.type == 2 or not 0 < file.ticks_per_beat < 2**15:  # of several pieces; or timed in frames of a film
        raise UserError(Problem(str(path), None, "files of type 0 or 1, timed in ticks of a quarter, would work"))
    ticks = file.ticks_per_beat / STEPS[step]
    spans: list[tuple[int, int, int]] = []
    end = 0
    for track in file.tracks:
        found, length = _spans(track)
        spans += found
        end = max(end, length)
    steps = max([_step(end, ticks), *(max(_step(stop, ticks), _step(start, ticks) + 1) for _, start, stop in spans)])
    _short(steps, str(path), None)
    roll = np.zeros((steps, PITCHES), dtype=bool)
    for number, start, stop in spans:
        first = _step(start, ticks)
        roll[first : max(_step(stop, ticks), first + 1), number] = True
    return roll


def write(roll: np.ndarray, path: Path, step: str, tempo: float) -> None:
    """bool [T, 128] as a file of one track; `tempo`: quarters a minute. Raises UserError where mido is missing."""
    mido = library(str(path))
    ticks = TICKS // STEPS[step]
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(tempo))])
    edges = np.diff(roll.astype(np.int8), axis=0, prepend=0, append=0)  # [T + 1, 128]: 1 begins, -1 ends
    last = 0
    for at, row in enumerate(edges):
        for change, kind in ((-1, "note_off"), (1, "note_on")):  # ends first: a player may have few voices
            for number in np.flatnonzero(row == change).tolist():
                track.append(mido.Message(kind, note=number, velocity=LOUDNESS, time=(at - last) * ticks))
                last = at
    track.append(mido.MetaMessage("end_of_track", time=(len(roll) - last) * ticks))
    file = mido.MidiFile(type=0, ticks_per_beat=TICKS)
    file.tracks.append(track)
    with files.whole(path) as part:
        file.save(part)


def library(key: str) -> Any:
    """mido. Raises UserError about `key` where it is not installed."""
    try:
        import mido
    except ImportError:
        raise UserError(Problem(key, None, "MIDI files need mido: pip install 'regraft[music]'")) from None
    return mido


def _spans(track: Any) -> tuple[list[tuple[int, int, int]], int]:
    """Pitch, first and last tick of each note of a track, and the track's length; what has no end lasts to the track's."""
    now = 0
    spans: list[tuple[int, int, int]] = []
    sounding: dict[tuple[int, int], deque[int]] = {}  # several of one pitch end in the order in which they began
    for message in track:
        now += message.time
        if message.type not in ("note_on", "note_off") or message.channel == DRUMS:
            continue
        begun = sounding.setdefault((message.channel, message.note), deque())
        if message.type == "note_on" and message.velocity:
            begun.append(now)
        elif begun:
            spans.append((message.note, begun.popleft(), now))
    return spans + [(number, start, now) for (_, number), begun in sounding.items() for start in begun], now


def _step(tick: int, ticks: float) -> int:
    """The nearest step; halfway it is the later one."""
    return int(tick / ticks + 0.5)


def _short(steps: int, key: str, given: str | None) -> None:
    if steps > LONGEST:
        raise UserError(Problem(key, given, f"{steps:,} steps; at most {LONGEST:,} are read"))
