"""Four-part chorales as piano rolls: at each step, which notes sound; and what is to be predicted of it, all that sounds next.

A step shows what sounds at its beginning, held notes too, as in the JSB chorales of Boulanger-Lewandowski et al. 2012 ("Modeling Temporal
Dependencies in High-Dimensional Sequences", section 6.1). Pieces are whole: most have some 50 quarters, so that padding costs little, and
what a net has heard of a piece is all that came before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.datasets import scores
from regraft.datasets.memo import remembered
from regraft.datasets.source import Sample, Source
from regraft.datasets.splits import OPEN, arrange, joined
from regraft.datasets.steps import Sequences, called, content, cut, masked
from regraft.errors import Problem, UserError

if TYPE_CHECKING:
    from regraft.datasets.sequences import Chorales

VOICES = 4
LOWEST = {46: 36, 88: 21}  # pitches -> MIDI number of the lowest
STEP = {"quarter": scores.TICKS, "sixteenth": scores.TICKS // 4}
OPENING = 8  # notes: two melodies that begin with the same intervals are taken for one
NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
SKIP = "or give dataset.on_error=skip to leave it out"


class Rolls(Sequences):
    """Piano rolls. What is read is the roll one step late, [T, P + 1]: at step t the notes of t - 1, and at the first none at all."""

    def read(self, sample: Sample) -> np.ndarray:
        """float32 [T, P + 1], the mask as last feature."""
        return late(self.steps(sample), self.shape[0])


def late(roll: np.ndarray, length: int) -> np.ndarray:
    """What a net hears while it is to play a roll [t, P]: float32 [length, P + 1], one step late, the mask as last feature."""
    return masked(np.concatenate([np.zeros_like(roll[:1]), roll[:-1]]), length)


def names(pitches: int) -> list[str]:
    """What the outputs are called: C2 (MIDI 36) to A5 (81), or A0 (21) to C8 (108)."""
    return [f"{NAMES[midi % 12]}{midi // 12 - 1}" for midi in range(LOWEST[pitches], LOWEST[pitches] + pitches)]


def load(spec: Chorales, cache: Path) -> Source:
    """The pieces that have four parts. Copies in other keys are train's alone, and settings of one melody share a split.

    Raises UserError: no music21 and no folder, a score that can't be read (on_error="raise"), too few pieces.
    """
    folder = _folder(spec)
    found, skipped = _scores(folder, cache, spec.on_error)
    rolls, remarks = {}, []
    for name, score in found.items():
        roll = piano_roll(score, STEP[spec.step], spec.pitches)
        if roll is None:
            remarks.append(f"{name} has notes outside of {spec.pitches} pitches, and was left out")
        elif len(roll):
            rolls[name] = roll
    if not rolls:
        remedy = f"holds no score of {VOICES} parts; give a folder of such scores ({', '.join(scores.SUFFIXES)}), or null for music21's"
        raise UserError(Problem("dataset.path", str(folder), remedy))
    rolls, length, cuts = cut(rolls, spec.length, "pieces", spec.pitches + 1)
    groups = _groups(found)
    samples = [Sample(name, OPEN, 0, content(roll, length), groups[name]) for name, roll in rolls.items()]
    with called("piece"):
        arranged = arrange(spec, names(spec.pitches), samples, kind="frames")
    for sample in [each for each in arranged if each.split == "train"]:
        for semitones, roll in _transposed(rolls[sample.id], spec.transpose):
            name = f"{sample.id}{semitones:+d}"
            rolls[name] = roll
            arranged.append(replace(sample, id=name, sha256=content(roll, length)))
    whole = [replace(sample, target=masked(rolls[sample.id], length)) for sample in arranged]
    return Rolls(rolls, length, names(spec.pitches), whole, skipped, kind="frames", remarks=[*remarks, *cuts])


def piano_roll(score: scores.Score, step: int, pitches: int) -> np.ndarray | None:
    """uint8 [t, P]: 1 where a note sounds at a step's beginning, steps counted so that the first whole measure begins with one.

    None: a note lies outside of the pitches.
    """
    lowest, phase = LOWEST[pitches], score.upbeat % step
    roll = np.zeros((-(-(score.length - phase) // step), pitches), np.uint8)
    for note in score.notes:
        if not 0 <= note.pitch - lowest < pitches:
            return None
        first, last = (-(-(tick - phase) // step) for tick in (note.start, note.end))  # the first step at or after a tick
        roll[max(first, 0) : last, note.pitch - lowest] = 1
    return roll


def _transposed(roll: np.ndarray, most: int) -> Iterator[tuple[int, np.ndarray]]:
    """The roll so many semitones up and down as stay inside of the pitches."""
    sounding = np.flatnonzero(roll.any(axis=0))
    for semitones in [each for size in range(1, most + 1) for each in (-size, size)]:
        if len(sounding) and 0 <= sounding[0] + semitones <= sounding[-1] + semitones < roll.shape[1]:
            yield semitones, np.roll(roll, semitones, axis=1)  # what goes round are zeros


def _folder(spec: Chorales) -> Path:
    if spec.path:
        return Path(spec.path).expanduser()
    found = find_spec("music21")
    if not (found and found.submodule_search_locations):
        remedy = "needs music21's corpus: pip install 'regraft[music]'; or give a folder of scores as dataset.path"
        raise UserError(Problem("dataset.name", spec.name, remedy))
    return Path(found.submodule_search_locations[0], "corpus", "bach")


def _scores(folder: Path, cache: Path, on_error: str) -> tuple[dict[str, scores.Score], list[Problem]]:
    """File name without its ending -> a score of four parts; and a Problem for each file that can't be read."""
    try:
        files = [file for file in folder.iterdir() if file.suffix.lower() in scores.SUFFIXES and not file.name.startswith(".")]
    except OSError as error:
        raise UserError(Problem("dataset.path", str(folder), f"can't be listed ({error.strerror}); give a folder of scores")) from None
    files.sort(key=lambda file: (file.stem, file.suffix))  # a folder lists its files in any order
    if twice := [file for before, file in pairwise(files) if before.stem == file.stem]:
        raise UserError(Problem("dataset.path", str(file), "is there with another ending too; keep one of them") for file in twice)

    def work() -> tuple[dict[str, Any], bool]:
        found, broken = dict[str, scores.Score](), list[Problem]()
        for file in files:
            try:
                score = scores.read(file)
            except UserError as error:
                broken += error.problems
            else:
                if len(score.parts) == VOICES:
                    found[file.stem] = score
        return {"found": found, "broken": broken}, not broken

    known = remembered(cache / "scores.json", files, scores.__file__, work)
    skipped = [Problem(key, given, f"{remedy}, {SKIP}") for key, given, remedy in known["broken"]]
    if skipped and on_error == "raise":
        raise UserError(skipped)
    return {
        name: scores.Score(parts, [scores.Note(*note) for note in notes], upbeat, length)
        for name, (parts, notes, upbeat, length) in known["found"].items()
    }, skipped


def _groups(found: Mapping[str, scores.Score]) -> dict[str, str]:
    """Piece -> the melody that it is a setting of, in whatever key, or the piece that it is a version of (bwv112.5 and bwv112.5-sc)."""
    versions = [name.partition("-")[0] for name in found]
    melodies = [_opening(score) for score in found.values()]
    return {name: group or name for name, group in zip(found, joined(versions, melodies), strict=True)}


def _opening(score: scores.Score) -> str | None:
    """The intervals between the soprano's first notes that fall on quarters, repeated ones once; None: it has too few."""
    line: list[int] = []
    for note in sorted((note for note in score.notes if note.part == 0), key=lambda note: note.start):
        on_quarter = -(-note.start // scores.TICKS) * scores.TICKS < note.end
        if on_quarter and line[-1:] != [note.pitch]:
            line.append(note.pitch)
    return _intervals(line[:OPENING]) if len(line) >= OPENING else None


def _intervals(line: Sequence[int]) -> str:
    return " ".join(str(after - before) for before, after in pairwise(line))
