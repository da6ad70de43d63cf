"""What a finished run is asked from the command line: its metrics once more, and what it says of pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.datasets.layout import SUFFIXES
from regraft.datasets.source import ARRAYS
from regraft.errors import Problem, UserError, nearest
from regraft.report.said import DRAWN
from regraft.report.words import plain

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.datasets.given import Given
    from regraft.graft import Run


def evaluate(word: str, tolerance: float, as_json: bool) -> int:
    """Measure a finished run again, from its weights and its data; 1: the record says something else."""
    from regraft import load

    run = load(_run_folder(word))
    recorded, found = run.metrics, run.evaluate()
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        width = max(map(len, found))
        for name, value in found.items():
            print(f"{name:<{width}}  {value:.4f}  recorded {recorded.get(name, float('nan')):.4f}")
    off = [
        name
        for name, value in found.items()
        if abs(value - recorded.get(name, value)) > tolerance * max(1.0, abs(value))  # of errors in large units, a part
    ]
    if off:
        print(f"regraft: {', '.join(off)} differ from the record by more than {tolerance}", file=sys.stderr)
    return 1 if off else 0


def predict(word: str, names: Sequence[str], top: int, as_json: bool, out: Path | None = None) -> int:
    """What a finished run says of pictures, or of files of the kind that it has learnt on: a line for each, with the `top` classes. `out`:
    the folder for pictures with what was said drawn in them; None: nothing is drawn."""
    from regraft import load

    run = load(_run_folder(word))
    if top < 1:
        raise UserError(Problem("--top", top, "at least 1 is needed"))
    what, suffixes = _reads(run, word)
    files = [file for name in names for file in _files(Path(name), suffixes, what)]
    places = _places(files, what, suffixes, out) if out else {}
    for given, scores in run.ask(files):
        print(_row(run, given, scores, top) if as_json else _line(run, given, scores, top))
        if places:
            from regraft import drawing

            drawing.write(run, given.file, scores, top, places[given.file])
    return 0


def diff(first: str, second: str, as_json: bool) -> int:
    """What differs between two runs, in what decided them and in what they say of the same test pictures."""
    from rich.console import Console

    from regraft.record import RunFolder
    from regraft.report import differing

    folders = RunFolder(_run_folder(first)), RunFolder(_run_folder(second))
    found = differing.compare(*folders)
    if as_json:
        print(json.dumps(found.plain(), indent=2, ensure_ascii=False))
    else:
        Console(highlight=False).print(differing.table(*folders, found))
    return 0


def _reads(run: Run, word: str) -> tuple[str, tuple[str, ...]]:
    """What a run can be asked about, and how the names of such files end (none: in any way). Raises UserError where there are no files."""
    from regraft.datasets import given

    if run.enters["kind"] == "pictures":
        return "pictures", SUFFIXES
    reader = given.reader(run.settings.dataset, word)
    return reader.what, reader.suffixes


def _places(files: Sequence[Path], what: str, suffixes: tuple[str, ...], out: Path) -> dict[Path, Path]:
    """Where each is drawn. Raises UserError for what is no picture, and where another file stands in the way."""
    from regraft import drawing

    if suffixes != SUFFIXES:
        raise UserError(Problem("--draw", str(out), f"pictures are drawn on, and this run reads {what}; leave --draw out"))
    return drawing.places(files, out)


def _row(run: Run, given: Given, scores: Tensor, top: int) -> str:
    """A line of JSON: file, line of the file where it holds several cases, predicted, scores of the likeliest."""
    kind = run.settings.task.KIND
    row: dict[str, Any] = {"file": str(given.file)} | ({} if given.line is None else {"line": given.line})
    if kind != "numbers":
        said = run.answer(scores)
        row["predicted"] = json.loads(said) if kind == "boxes" else said
    if kind not in ARRAYS:
        row["scores"] = dict(_ranked(run, scores, top))
    text = json.dumps(row, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()  # of a name that is no UTF-8; as it happens JSON writes such bytes alike


def _line(run: Run, given: Given, scores: Tensor, top: int) -> str:
    """The same for people."""
    kind = run.settings.task.KIND
    if kind == "boxes":
        said = _boxes(run, scores)
    elif kind in ARRAYS:
        said = plain(run.answer(scores))
    else:
        width = max(map(len, run.classes))
        said = "  ".join(f"{plain(name):<{width}} {score:.3f}" for name, score in _ranked(run, scores, top))
        if kind == "tags":
            said = f"{plain(run.answer(scores)) or 'no tag'}  {said}"
    return f"{plain(given.file if given.line is None else f'{given.file}:{given.line}')}  {said}"


def _ranked(run: Run, scores: Tensor, top: int) -> list[tuple[str, float]]:
    """The likeliest classes, or all numbers, with their scores."""
    order = range(len(run.classes)) if run.settings.task.KIND == "numbers" else scores.topk(min(top, len(run.classes))).indices.tolist()
    return [(run.classes[place], round(scores[place].item(), 6)) for place in order]


def _boxes(run: Run, scores: Tensor) -> str:
    """The boxes that are drawn, too: class, score, and left, top, right, bottom in parts of the picture."""
    from regraft.report import boxes

    sure = [each for each in boxes.told(scores.tolist(), run.classes) if each.score is not None and each.score >= boxes.SURE]
    told = [f"{plain(name)} {score:.2f} at {' '.join(f'{side:.2f}' for side in box)}" for name, box, score in sure]
    return "; ".join(told) or f"no box of a score of {boxes.SURE} or more"


def generate(run: str, prime: str, seconds: float, seed: int, output: str, **how: Any) -> list[Path]:
    """What a finished run plays on from a prime: the MIDI file and its picture, in the folder `output`. `how`: as `generating.write`."""
    from regraft import generating, load

    return generating.write(load(_run_folder(run)), prime, seconds, seed, Path(output).expanduser().absolute(), **how)


def _run_folder(word: str) -> Path:
    """Raises UserError, with the nearest name or the run folders inside, for a folder that is none."""
    path, record = Path(word).expanduser(), "record.json"
    if (path / record).is_file():
        return path
    if not path.is_dir():
        there = [str(each) for each in path.parent.iterdir() if each.is_dir()] if path.parent.is_dir() else []
        raise UserError(
            Problem("RUN", word, f"no such folder; {nearest(str(path), there) or 'name a run folder, as regraft train tells it'}")
        )
    inside = sorted(str(each.parent) for each in path.glob(f"*/{record}"))
    hint = f"it holds some: {', '.join(inside[:3])}" if inside else "name one, as regraft train tells it"
    raise UserError(Problem("RUN", word, f"not a run folder: it has no {record}; {hint}"))


def _files(path: Path, suffixes: tuple[str, ...], what: str) -> list[Path]:
    """A file as it is; a folder's files whose names end so (none: all), at any depth, but for our own drawings. Raises UserError where
    there is nothing."""
    if path.is_dir():
        every = sorted(file for file in path.rglob("*") if not file.name.startswith(".") and file.is_file())
        found = [file for file in every if not suffixes or (file.suffix.lower() in suffixes and not file.name.endswith(DRAWN))]
        if not found:
            raise UserError(Problem(str(path), None, f"the folder holds no {what}"))
        return found
    if not path.is_file():
        raise UserError(Problem(str(path), None, "no such file or folder"))
    return [path]
