"""A score in MusicXML (.mxl, .musicxml, .xml) as notes: which pitch sounds in which part, from when to when; data, never a program."""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError, fromstring

from regraft.errors import Problem, UserError

SUFFIXES = (".mxl", ".musicxml", ".xml")
BIGGEST = 1 << 26  # bytes of one score, unpacked
TICKS = 322_560  # in a quarter: 2^10 3^2 5 7, so that lengths which programs write are whole numbers of ticks
LONGEST = 100_000 * TICKS
STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}  # letter -> semitones above C


class Note(NamedTuple):
    """One sounding note; ties are left as the notes that they join."""

    part: int  # from 0, from the top of the score
    pitch: int  # MIDI: middle C is 60
    start: int  # ticks from the beginning
    end: int


class Score(NamedTuple):
    """What sounds, repeats written once, as they stand on paper."""

    parts: list[str]  # their names, from the top
    notes: list[Note]
    upbeat: int  # ticks before the first whole measure
    length: int  # ticks, rests at the end too


class _Broken(Exception):
    """What is wrong with a score, as a remedy says it."""


def read(path: Path) -> Score:
    """The score that a file holds. Raises UserError (the file): it can't be read, is no MusicXML in parts, is too big."""
    try:
        if path.stat().st_size > BIGGEST:
            raise _Broken(f"is larger than {BIGGEST:,} bytes")
        data = path.read_bytes()
        return _score(_tree(_unpacked(data) if zipfile.is_zipfile(io.BytesIO(data)) else data))
    except OSError as error:
        problem = Problem(str(path), None, f"can't be read ({error.strerror or error}); mend or remove it")
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        ArithmeticError,
        RuntimeError,
        NotImplementedError,
        ParseError,
        ValueError,
        _Broken,
    ) as error:
        problem = Problem(str(path), None, f"is no score that can be used ({error}); export it as uncompressed MusicXML, or remove it")
    raise UserError(problem)


def _unpacked(data: bytes) -> bytes:
    """The score inside of an .mxl: the first file that META-INF/container.xml names. Nothing is written to the disk."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        first = _tree(_member(archive, "META-INF/container.xml")).find(".//{*}rootfile")
        return _member(archive, "" if first is None else first.get("full-path", ""))


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        with archive.open(name) as file:
            data = file.read(BIGGEST + 1)  # a header may lie about the size
    except KeyError:
        raise _Broken(f"its archive has no {name or 'rootfile'}") from None
    if len(data) > BIGGEST:
        raise _Broken(f"{name} is larger than {BIGGEST:,} bytes")
    return data


def _tree(data: bytes) -> Element:
    """XML as elements. MusicXML has a DOCTYPE, which is passed over: nothing is fetched, and entities that a file declares are refused.

    The parser knows UTF-16, and else only encodings that write ASCII as ASCII does: so the search finds every declaration.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:4]:
        raise _Broken("it is UTF-16; UTF-8 is needed")
    if b"<!ENTITY" in data:
        raise _Broken("it declares an entity")
    return fromstring(data)


def _score(root: Element) -> Score:
    if root.tag != "score-partwise":
        raise _Broken(f"its root is {root.tag}, not score-partwise")
    names = {part.get("id"): (part.findtext("part-name") or "").strip() for part in root.iterfind("part-list/score-part")}
    parts = root.findall("part")
    measured = [list(_measures(part)) for part in parts]  # for each part, each measure's notes from its own beginning, and its length
    if not parts or len({len(measures) for measures in measured}) > 1:
        raise _Broken("its parts have different numbers of measures" if parts else "it has no part")
    notes, start, lengths = [], 0, []
    for together in zip(*measured, strict=True):
        for number, (inside, _) in enumerate(together):
            notes += [Note(number, pitch, start + begin, start + end) for pitch, begin, end in inside]
        lengths.append(max(length for _, length in together))
        start += lengths[-1]
        if start > LONGEST:
            raise _Broken(f"it is longer than {LONGEST // TICKS:,} quarters")
    first = parts[0].find("measure")
    upbeat = lengths[0] if first is not None and first.get("implicit") == "yes" else 0
    return Score([names.get(part.get("id"), "") for part in parts], notes, upbeat, start)


def _measures(part: Element) -> Iterator[tuple[list[tuple[int, int, int]], int]]:
    """A part's measures: (pitch, start, end) of what sounds, in ticks from the measure's beginning, and the measure's length."""
    divisions, transposed = 1.0, 0  # a quarter in the units of durations; semitones from what is written to what sounds
    for measure in part.iterfind("measure"):
        now = begin = longest = 0
        sounding = []
        for each in measure:
            match each.tag:
                case "attributes":
                    if (given := each.findtext("divisions")) is not None:
                        divisions = float(given)
                    if not divisions > 0:
                        raise _Broken("a quarter has no divisions")
                    if (change := each.find("transpose")) is not None:
                        transposed = round(float(change.findtext("chromatic", "0"))) + 12 * int(change.findtext("octave-change", "0"))
                case "backup" | "forward":
                    length = _duration(each, divisions)
                    now = max(0, now - length) if each.tag == "backup" else now + length
                case "note" if each.find("grace") is None and each.find("cue") is None:
                    length = _duration(each, divisions)
                    if each.find("chord") is None:  # a chord's other notes begin with its first
                        begin, now = now, now + length
                    if (pitch := each.find("pitch")) is not None:
                        sounding.append((_pitch(pitch) + transposed, begin, begin + length))
            longest = max(longest, now)
        yield sounding, longest


def _duration(element: Element, divisions: float) -> int:
    """Ticks."""
    length = float(element.findtext("duration", "nan")) * TICKS / divisions
    if not 0 <= length <= LONGEST:
        raise _Broken(f"a note is {length / TICKS:g} quarters long")
    return round(length)


def _pitch(pitch: Element) -> int:
    """MIDI number: C4 is 60."""
    letter = pitch.findtext("step", "").strip()
    if letter not in STEPS:
        raise _Broken(f"a note has the letter {letter or 'of none'}")
    return STEPS[letter] + round(float(pitch.findtext("alter", "0"))) + 12 * (int(pitch.findtext("octave", "")) + 1)
