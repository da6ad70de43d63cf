"""What a run says, drawn: on each picture that it was asked about, and where a captioner looked on test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regraft.datasets import pictures
from regraft.errors import Problem, UserError
from regraft.report import boxes, canvas, looks, said
from regraft.report.looks import Looked

if TYPE_CHECKING:
    from PIL.Image import Image

    from regraft.chain import Chain
    from regraft.graft import Run
    from regraft.reading import Reading

SHOWN = 6  # test pictures for which it is shown where a captioner looked
LONGEST = 200  # bytes of a name that are kept: no disk takes more than 255


def places(files: Iterable[Path], folder: Path) -> dict[Path, Path]:
    """Where the drawing of each file goes: NAME.predicted.png, numbered where two have one name.

    Raises UserError for a folder that can't be made, and for a drawing that would take the place of a file that is none of ours.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(Problem("--draw", str(folder), f"can't be made ({error.strerror}); name another folder")) from None
    found: dict[Path, Path] = {}
    taken: set[Path] = set()
    for file in dict.fromkeys(files):
        stem, number = os.fsdecode(os.fsencode(file.stem)[:LONGEST]), 1
        while (place := folder / f"{stem}{f'-{number}' if number > 1 else ''}{said.DRAWN}") in taken:
            number += 1
        taken.add(place)
        found[file] = place
    if kept := [place for place in found.values() if os.path.lexists(place) and not canvas.ours(place)]:
        raise UserError(
            Problem("--draw", str(place), "is there, and is no drawing of regraft's; name another folder") for place in kept[:20]
        )
    return found


def write(run: Run, path: Path, scores: Tensor, top: int, place: Path) -> None:
    """`draw`, as a PNG."""
    canvas.save(draw(run, path, scores, top), place)


def draw(run: Run, path: Path, scores: Tensor, top: int) -> Image:
    """What a run says of one picture: boxes on it, or words below it; a captioner that looks shows where. `scores`: as `Run.ask` has them;
    `top`: how many classes are named."""
    if getattr(run.settings.head, "attention", False):
        return looks.sheet(seen(run.chain, run.views(path)[:1], [""], run.classes), "the picture, then each word; red: read off there")
    picture = pictures.decode(pictures.content(path), str(path))
    kind = run.settings.task.KIND
    if kind == "boxes":
        return boxes.draw(said.enlarged(picture), boxes.told(scores.tolist(), run.classes))
    return said.below(picture, LINES[kind](run, scores, top))


def _classes(run: Run, scores: Tensor, top: int) -> list[tuple[str, str]]:
    return [(run.classes[place], f"{scores[place]:.2f}") for place in scores.topk(min(top, len(run.classes))).indices.tolist()]


def _tags(run: Run, scores: Tensor, top: int) -> list[tuple[str, str]]:
    return [(", ".join(run.answer(scores).split("|")) or "no tag", ""), *_classes(run, scores, top)]


def _numbers(run: Run, scores: Tensor, top: int) -> list[tuple[str, str]]:
    return [(name, f"{score:.6g}") for name, score in zip(run.classes, scores.tolist(), strict=True)]


def _text(run: Run, scores: Tensor, top: int) -> list[tuple[str, str]]:
    return [(run.answer(scores) or "nothing", "")]


LINES: dict[str, Callable[[Run, Tensor, int], list[tuple[str, str]]]] = {
    "class": _classes,
    "tags": _tags,
    "numbers": _numbers,
    "text": _text,
}


@torch.inference_mode()
def seen(chain: Chain, x: Tensor, truths: Sequence[str], names: Sequence[str]) -> list[Looked]:
    """What a captioner that looks says of pictures as they are fed, uint8 [b, 3, size, size], and where it looked for each word."""
    maps = chain(chain.prepare(x.to(next(chain.parameters()).device)), stop="head")
    return looks.looked(chain.head, maps, [each.permute(1, 2, 0).numpy() for each in x], truths, names)


def on_test(chain: Chain, reading: Reading, path: Path) -> None:
    """The same of a few test pictures, spread over all of them, each with the first of its references, as a PNG."""
    rows, names, feed = list[Looked](), reading.source.classes, reading.pictures("test", augmented=False)
    if shown := min(SHOWN, len(feed)):
        places = torch.arange(shown) * len(feed) // shown
        truths = [text.split("|")[0] for text in reading.settings.task.truths(feed.truth[places], names)]
        rows = seen(chain, feed.tensors(places, torch.zeros_like(places), 0), truths, names)
    canvas.save(looks.sheet(rows), path)
