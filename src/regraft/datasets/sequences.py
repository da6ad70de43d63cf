"""The sets of sequences that the dataset group has: what each takes. Importing it costs milliseconds (no numpy or torch)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from regraft.datasets.spec import DatasetSpec, Splitting, WithVal, need_path
from regraft.errors import Problem
from regraft.registry import doc

if TYPE_CHECKING:
    from regraft.datasets.source import Source

VOWELS = [str(number) for number in range(1, 10)]  # the nine speakers


class _Lengths(DatasetSpec):
    """What sets of sequences take beside the rest."""

    length: int | None = doc("steps: what is longer is cut after so many (null: all are padded to the longest)", ge=1)


class JapaneseVowels(_Lengths, WithVal):
    """Japanese vowels: 270 and 370 utterances of nine speakers, 7 to 29 steps of 12 numbers; which speaker is it? (Kudo et al. 1999)"""

    path: str | None = doc("folder of JapaneseVowels_TRAIN.ts and JapaneseVowels_TEST.ts (null: aeon's own)", decides=False, path=True)

    def open(self, cache: Path) -> Source:
        from regraft.datasets import series

        self.check()
        return series.load_vowels(self)

    def names(self) -> list[str]:
        return VOWELS


class Series(_Lengths, Splitting):
    """Your own series in aeon's .ts format: NAME.ts, or NAME_TRAIN.ts and NAME_TEST.ts."""

    path: str = doc("a .ts file, or the folder of NAME_TRAIN.ts and NAME_TEST.ts", decides=False, path=True)

    def open(self, cache: Path) -> Source:
        from regraft.datasets import series

        self.check()
        return series.load(self)

    def names(self) -> list[str] | None:
        need_path(self, self.path)
        return None


class Chorales(_Lengths, Splitting):
    """Bach's four-part chorales from music21's corpus as piano rolls: which notes sound next? (Boulanger-Lewandowski et al. 2012)"""

    path: str | None = doc("folder of four-part scores: .mxl, .musicxml, .xml (null: music21's chorales)", decides=False, path=True)
    step: Literal["quarter", "sixteenth"] = doc("a frame of the roll: quarter or sixteenth")
    pitches: Literal[46, 88] = doc("46: MIDI 36 to 81, the chorales' own range; 88: a piano's keys, MIDI 21 to 108")
    transpose: int = doc("semitones up and down by which train pieces are copied, one copy for each (0: none)", ge=0, le=11)

    def open(self, cache: Path) -> Source:
        from regraft.datasets import chorales

        self.check()
        return chorales.load(self, cache)

    def problems(self) -> list[Problem]:
        found = super().problems()
        if self.classes is not None:
            found.append(
                Problem("classes", self.classes, "pitches are predicted, not classes; choose their range with dataset.pitches=46 or 88")
            )
        return found


class Texts(_Lengths, Splitting):
    """What sets of texts take: how a text becomes tokens."""

    level: Literal["word", "char"] = doc("a token is a word or a punctuation mark, in lower case (word), or a character (char)")
    floor: int = doc("how often train must have a token for it to be known", ge=1)
    most: int = doc("tokens that are known at most, the most frequent ones", ge=1, le=1_000_000)
    vocabulary: str | None = doc(
        "an earlier run's folder, or a vocabulary.json: its tokens are the known ones (null: train's)", decides=False, path=True
    )

    def problems(self) -> list[Problem]:
        found = super().problems()
        if self.vocabulary and not Path(self.vocabulary).expanduser().exists():
            found.append(Problem("vocabulary", self.vocabulary, "no such run folder or file"))
        return found


class Text(Texts):
    """Your own texts: a csv of texts and their classes, or PATH/<class>/*.txt, or PATH/<split>/<class>/*.txt."""

    path: str = doc(
        "a csv with column names in its first line, or a folder of class folders of .txt files; UTF-8", decides=False, path=True
    )
    delimiter: str | None = doc("csv: character between columns (null: comma, semicolon or tab)", min_length=1, max_length=1)
    text: str = doc("csv: column of the texts")
    label: str = doc("csv: column of the classes")
    split: str | None = doc("csv: column of the splits: train, val (valid, validation), test (null: all are made)")

    def open(self, cache: Path) -> Source:
        from regraft.datasets import text

        self.check()
        return text.load(self)

    def names(self) -> list[str] | None:
        need_path(self, self.path)
        return None


class Spam(Texts):
    """SpamAssassin's mail: 4,150 wanted and 1,896 unwanted, without their headers, which would tell (where each came from, and when)."""

    path: str | None = doc("folder of easy-ham-1, ..., spam-2 (null: datasets/spam in the cache folder)", decides=False, path=True)

    def open(self, cache: Path) -> Source:
        from regraft.datasets import text

        self.check()
        return text.load_spam(self, cache)

    def names(self) -> list[str]:
        return ["ham", "spam"]
