"""What a finished run is asked from the command line: its metrics once more, and what it says of pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from regraft.datasets.source import ARRAYS, PICTURES
from regraft.errors import Problem, UserError, nearest


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


def predict(word: str, names: Sequence[str], top: int, as_json: bool) -> int:
    """What a finished run says of pictures: the `top` classes of each, a line each."""
    from regraft import load

    run = load(_run_folder(word))
    files = [file for name in names for file in _pictures(Path(name))]
    if top < 1:
        raise UserError(Problem("--top", top, "at least 1 is needed"))
    task, enters = run.settings.task, (run.record["data"].get("input") or PICTURES)["kind"]
    if enters != "pictures":
        raise UserError(Problem("RUN", word, f"it reads no pictures ({enters}), and files of other kinds are not predicted yet"))
    if task.KIND in ARRAYS:
        for path, answer in run.predict(files):
            [said] = task.answers(answer[None], run.classes)
            print(json.dumps({"file": str(path), "predicted": said}, ensure_ascii=False) if as_json else f"{path}  {said}")
        return 0
    top = len(run.classes) if task.KIND == "numbers" else min(top, len(run.classes))
    width = max(map(len, run.classes))
    for path, scores in run.predict(files):
        order = range(top) if task.KIND == "numbers" else scores.topk(top).indices.tolist()
        ranked = [(run.classes[i], round(scores[i].item(), 6)) for i in order]
        if as_json:
            said = {} if task.KIND == "numbers" else {"predicted": task.answers(scores[None], run.classes)[0]}
            print(json.dumps({"file": str(path), **said, "scores": dict(ranked)}, ensure_ascii=False))
        else:
            print(f"{path}  {'  '.join(f'{name:<{width}} {score:.3f}' for name, score in ranked)}")
    return 0


def generate(word: str, prime: str, seconds: float, seed: int, out: Path, tempo: float, temperature: float) -> list[Path]:
    """What a finished run plays on from a prime: the MIDI file and its picture."""
    from regraft import generating, load

    return generating.write(load(_run_folder(word)), prime, seconds, seed, out, tempo=tempo, temperature=temperature)


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


def _pictures(path: Path) -> list[Path]:
    """A file as it is; a folder's pictures, at any depth. Raises UserError where there is nothing."""
    from regraft.datasets.layout import SUFFIXES

    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not found:
            raise UserError(Problem(str(path), None, "the folder holds no pictures"))
        return found
    if not path.is_file():
        raise UserError(Problem(str(path), None, "no such file or folder"))
    return [path]
