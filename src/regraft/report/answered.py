"""What a row's runs say of each test picture: who is right where, what is taken for what, how far a score can be believed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regraft.datasets.shifted import MARK
from regraft.errors import UserError
from regraft.record import PREDICTIONS, SHIFTED
from regraft.report import comparing, words
from regraft.report.pictures import answers
from regraft.report.rows import Board, Row, Run
from regraft.report.statistics import wilson
from regraft.tasks import LOWER

TEST = "test"
TESTED = 50  # rows that are tested against the best
READ = 200  # runs whose answers are counted picture by picture


class Answer(NamedTuple):
    """One run's answer about a test picture."""

    truth: str
    predicted: str
    score: float | None  # of what was predicted: a probability


def of(run: Run, split: str = TEST) -> dict[str, Answer]:
    """{picture's id: answer} of test, or of test under a shift (noise-3); empty where the run classifies nothing, or its predictions can't
    be read."""
    if run.status != "done" or words.at(run.record, "data.kind") != "class":
        return {}
    try:
        table = answers(run.path / (PREDICTIONS if split == TEST else SHIFTED), None if split == TEST else split)
    except UserError:
        return {}  # a damaged file hides nothing of the others
    if table is None:
        return {}
    rows = table.select("id", "truth", "predicted", "score").rows()
    under = "" if split == TEST else f"{MARK}{split}"
    return {str(name).removesuffix(under): Answer(_one(truth), _one(said), score) for name, truth, said, score in rows}


def _one(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


@dataclass(frozen=True)
class Answers:
    """The answers of a row's runs."""

    runs: tuple[Mapping[str, Answer], ...]

    @classmethod
    def read(cls, row: Row, split: str = TEST) -> Answers:
        return cls(tuple(found for run in row.done if (found := of(run, split))))

    @cached_property
    def shared(self) -> list[str]:
        """The pictures that all runs were asked about, in the first one's order."""
        return [name for name in self.runs[0] if all(name in run for run in self.runs[1:])] if self.runs else []

    def right(self, names: Sequence[str]) -> NDArray[np.float64]:
        """1 where a run is right, else 0: (run, picture)."""
        return np.array([[run[name].truth == run[name].predicted for name in names] for run in self.runs], dtype=float)

    def all(self) -> Iterable[Answer]:
        for run in self.runs:
            yield from run.values()


class Versus(NamedTuple):
    """A row beside the best one, on the pictures that both were tested on."""

    row: str
    pictures: int
    difference: float  # of the best above it, in the metric
    low: float  # of the difference's 95% interval: seeds and pictures drawn anew
    high: float
    p: float  # two-sided, over pictures
    adjusted: float  # by Holm, over all rows of the table
    effect: float  # Cohen's d_z over pictures
    test: str


def against_best(board: Board) -> list[Versus]:
    """Each row tested against the best on val; empty where there is none, or where answers are not simply right or wrong."""
    if board.best is None or board.metric != "accuracy":
        return []
    best = Answers.read(board.best)
    alike: dict[tuple[str, ...], list[tuple[int, Row, Answers]]] = {}  # by the pictures that a row shares with the best
    for place, row in enumerate([row for row in board.rows if row is not board.best and row.done][:TESTED]):
        other = Answers.read(row)
        alike.setdefault(tuple(sorted(set(best.shared) & set(other.shared))), []).append((place, row, other))
    placed = []
    for names, rows in alike.items():
        if len(names) < 2:
            continue
        one, others = best.right(names), [other.right(names) for *_, other in rows]
        for (place, row, _), two, apart in zip(rows, others, comparing.beside(one, others), strict=True):
            pair = comparing.paired(one.mean(axis=0), two.mean(axis=0))
            placed.append((place, Versus(row.name, len(names), *apart, pair.p, pair.p, pair.effect, pair.name)))
    found = [versus for _, versus in sorted(placed)]
    adjusted = comparing.holm({str(place): versus.p for place, versus in enumerate(found)})
    return [versus._replace(adjusted=adjusted[str(place)]) for place, versus in enumerate(found)]


def confusion(found: Answers) -> tuple[list[str], NDArray[np.int64]]:
    """The classes, and how often each (row) was taken for each (column), over all runs."""
    counts = Counter((answer.truth, answer.predicted) for answer in found.all())
    classes = sorted({name for pair in counts for name in pair})
    place = {name: at for at, name in enumerate(classes)}
    table = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for (truth, predicted), count in counts.items():
        table[place[truth], place[predicted]] = count
    return classes, table


class Class(NamedTuple):
    """A class's accuracy (its recall), with Wilson's interval over its pictures; of several runs over all their answers."""

    name: str
    right: int
    n: int
    low: float
    high: float


def classes(found: Answers) -> list[Class]:
    """The hardest first."""
    right, n = Counter[str](), Counter[str]()
    for answer in found.all():
        n[answer.truth] += 1
        right[answer.truth] += answer.truth == answer.predicted
    rows = [Class(name, right[name], n[name], *wilson(right[name], n[name])) for name in n]
    return sorted(rows, key=lambda row: (row.right / row.n, row.name))


class Bin(NamedTuple):
    """Answers whose score lies in one part of 0..1."""

    low: float
    high: float
    n: int
    score: float  # the mean
    right: float  # the part of them that is right


def reliability(found: Answers, bins: int) -> tuple[list[Bin], float] | None:
    """Equal bins of the score and the expected calibration error (Guo et al. 2017, ICML, equation 3); None: there are no scores, or they
    are no probabilities."""
    pairs = [(answer.score, answer.truth == answer.predicted) for answer in found.all() if answer.score is not None]
    if not pairs:
        return None
    scores, right = np.array([score for score, _ in pairs]), np.array([hit for _, hit in pairs], dtype=float)
    if not ((scores >= 0) & (scores <= 1 + 1e-6)).all():
        return None
    place = np.minimum((scores * bins).astype(int), bins - 1)
    kept = [
        Bin(at / bins, (at + 1) / bins, int(m.sum()), float(scores[m].mean()), float(right[m].mean()))
        for at in range(bins)
        if (m := place == at).any()
    ]
    return kept, float(sum(each.n * abs(each.right - each.score) for each in kept) / len(pairs))


class Hard(NamedTuple):
    """A test picture that runs are often wrong about."""

    name: str
    truth: str
    wrong: int
    asked: int  # runs
    said: str  # what was said most often instead


def hardest(board: Board, most: int) -> tuple[list[Hard], int]:
    """The pictures that most runs are wrong about, of several the one that they are surest about, and how many runs were read."""
    wrong, asked, said, truths = Counter[str](), Counter[str](), dict[str, Counter[str]](), dict[str, str]()
    sure = defaultdict[str, float](float)  # the sum of wrong answers' scores
    runs = [run for row in board.rows for run in row.done][:READ]
    read = 0
    for run in runs:
        found = of(run)
        read += bool(found)
        for name, answer in found.items():
            asked[name] += 1
            truths[name] = answer.truth
            if answer.truth != answer.predicted:
                wrong[name] += 1
                sure[name] += answer.score or 0
                said.setdefault(name, Counter())[answer.predicted] += 1
    names = sorted(wrong, key=lambda name: (-wrong[name] / asked[name], -asked[name], -sure[name], name))[:most]
    return [Hard(name, truths[name], wrong[name], asked[name], said[name].most_common(1)[0][0]) for name in names], read


class Across(NamedTuple):
    """A row over several data sets: the interquartile mean of its runs' figures on test."""

    name: str
    sets: int
    runs: int
    found: comparing.Interval


def across(boards: Sequence[Board]) -> list[Across]:
    """The rows that stand on the boards of several data sets with the same metric, and on each of these; the best first. Empty where there
    is one data set, and where no row has several runs on one."""
    found = []
    for metric in dict.fromkeys(board.metric for board in boards):
        alike = [board for board in boards if board.metric == metric]
        scores: dict[str, list[list[float]]] = {}
        for board in alike:
            for row in board.rows:
                values = [value for run in row.done if (value := run.metric(f"test/{metric}")) is not None]
                if values:
                    scores.setdefault(_apart_from_data(row), []).append(values)
        whole = {name: sets for name, sets in scores.items() if len(sets) == len(alike) > 1 and max(map(len, sets)) > 1}
        rows = [Across(name, len(sets), sum(map(len, sets)), comparing.interquartile(sets)) for name, sets in whole.items()]
        found += sorted(rows, key=lambda row: row.found.value, reverse=metric not in LOWER)
    return found


def _apart_from_data(row: Row) -> str:
    kept = {key: value for key, value in row.values.items() if key.split(".")[0] not in ("dataset", "data")}
    return ", ".join(f"{key}={words.value(value)}" for key, value in kept.items()) or "all runs"
