"""A sheet of train pictures and of what training will see of them: the training's own feed, drawn before anything is trained."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regraft.augment import Several
from regraft.batches import Batch, GlobalBatches, Share
from regraft.errors import Problem, UserError
from regraft.files import whole
from regraft.hardware import Batch as Arithmetic
from regraft.reading import Reading
from regraft.report.words import plain
from regraft.views import IDENTITY

if TYPE_CHECKING:
    from PIL.Image import Image

    from regraft.datasets.source import Source
    from regraft.settings import Settings

READ = 64  # pictures that are read at once
DPI = 150
BOX, GAP, TEXT, MARGIN, HEAD = 150, 12, 24, 24, 108  # px: a picture, between two, a line of text, edges, headline
LETTERS = 24  # of a note, about as many as fit below a picture
TINY = 3  # a picture that is enlarged so many times keeps its pixels visible
BRIGHT = 0.99  # the part of a whitened picture's values that the scale of grey holds
INK, GREY, RULE = "#222222", "#6b6b6b", "#d4d4d4"


class Column(NamedTuple):
    """One column of the sheet."""

    title: str
    pictures: list[np.ndarray]  # uint8 [h, w, 3] each
    notes: list[str]  # a line below each; may be empty


class Training:
    """What training sees of chosen pictures; no net is built."""

    def __init__(self, settings: Settings, source: Source) -> None:
        """Raises UserError where there is nothing to train on."""
        s = self.settings = settings
        self.source, samples = source, source.split("train")
        if not samples:
            raise UserError(Problem("dataset", s.dataset.name, "the train split holds no pictures; there is nothing to show"))
        self.reading = Reading(s, source)
        if source.input != "pictures":
            raise UserError(Problem("dataset", s.dataset.name, f"its samples are no pictures ({source.input}); there is nothing to show"))
        self.feed = self.reading.pictures("train", augmented=True)
        self.whitened = self.reading.whitening()
        self.views = self.feed.views
        one = Arithmetic(s.data.batch_size, 1, s.data.batch_size, 1)  # how a batch is shared out does not change what it holds
        self.batches = GlobalBatches(len(samples), one, **self.reading.sampling())

    def view(self, index: Sequence[int], view: int) -> Tensor:
        """One view of each of these pictures: uint8 [b, 3, size, size]"""
        return self.feed.tensors(torch.tensor(index), torch.full((len(index),), view), 0)

    def epoch(self, index: Sequence[int], epoch: int) -> list[Batch]:
        """What an epoch sees of each of these train pictures: a batch of one row each. Where an epoch shows all views, it is one of them,
        the next one in the next epoch."""
        self.batches.set_epoch(epoch)
        shown = epoch % len(self.views) if self.batches.expand else None
        found: dict[int, Batch] = {}
        for share in self.batches:
            for row, (picture, view) in enumerate(zip(share.picture.tolist(), share.view.tolist(), strict=True)):
                if picture in index and shown in (None, view):
                    found[picture] = self.feed.batch(self._only(share, row))
        return [found[picture] for picture in index]

    def _only(self, share: Share, row: int) -> Share:
        """The share without its other rows."""
        at = torch.tensor([row])
        partners = share.partners
        if partners and self.feed.mix:
            plan = self.feed.mix.rows(partners.plan, at)
            partners = partners._replace(picture=partners.picture[at], view=partners.view[at], plan=plan)
        return share._replace(picture=share.picture[at], view=share.view[at], row=share.row[at], weight=share.weight[at], partners=partners)


def sheet(training: Training, pictures: int, draws: int) -> list[Column]:
    """The sheet's columns, of train pictures at equal distances: as they are; then every view, or what so many epochs draw."""
    s, samples = training.settings, training.feed.samples
    count = min(pictures, len(samples))
    index = [number * len(samples) // count for number in range(count)]
    columns = [Column("picture", [training.source.read(samples[at]) for at in index], [_class(training, at) for at in index])]
    seen = _whitened(training.whitened) if training.whitened else _levels
    if s.augmentation.finite():
        for number, view in enumerate(training.views):
            title = str(view) if len(training.views) > 1 else "whitened" if training.whitened else "as it is trained on"
            columns.append(Column(title, [seen(x) for x in training.view(index, number)], [""] * count))
        return columns
    for epoch in range(draws):
        drawn = training.epoch(index, epoch)
        columns.append(Column(f"epoch {epoch}", [seen(batch.x[0]) for batch in drawn], [_note(training, batch) for batch in drawn]))
    return columns


def _class(training: Training, at: int) -> str:
    sample = training.feed.samples[at]
    return training.source.classes[sample.label] if sample.target is None else Path(sample.id).name


def _note(training: Training, batch: Batch) -> str:
    """With what a drawn picture is mixed, or which view it is."""
    share = batch.share
    if batch.own is not None and share.partners:
        return f"{float(batch.own):.0%}, {1 - float(batch.own):.0%} {_class(training, int(share.partners.picture))}"
    view = training.views[int(share.view)]
    return "" if view == IDENTITY else str(view)


def _levels(x: Tensor) -> np.ndarray:
    """[3, h, w], uint8 or floats in 0..1 -> uint8 [h, w, 3]"""
    x = x if x.dtype == torch.uint8 else (x * 255).round().clamp(0, 255).to(torch.uint8)
    return x.permute(1, 2, 0).numpy()


def _whitened(module: torch.nn.Module) -> Callable[[Tensor], np.ndarray]:
    """Whitened values, of which 0 is shown as grey and the largest as black or white."""

    def seen(x: Tensor) -> np.ndarray:
        y = module((x / 255 if x.dtype == torch.uint8 else x)[None])[0]
        most = y.abs().flatten().quantile(BRIGHT).clamp(min=1e-6)
        return _levels((0.5 + y / (2 * most)).clamp(0, 1))

    return seen


def headline(settings: Settings) -> str:
    """What the sheet shows, for its second line."""
    augmentation = settings.augmentation
    names = [part.name for part in augmentation.parts()] if isinstance(augmentation, Several) else [augmentation.name]
    whitened = ", whitened values around grey" if augmentation.whiten() else ""
    return f"{', '.join(names)}; {settings.size} x {settings.size} px, seed {settings.seed}{whitened}"


def write(settings: Settings, source: Source, path: Path, pictures: int, draws: int) -> None:
    """Draw the sheet into a PNG. Raises UserError for a path or a number that can't be."""
    asked = {"--pictures": pictures, "--draws": draws}
    wrong = [Problem(key, number, "at least 1 is needed") for key, number in asked.items() if number < 1]
    if path.suffix.lower() != ".png":
        wrong.append(Problem("--output", str(path), "the sheet is a PNG; name a file.png"))
    elif path.is_dir():
        wrong.append(Problem("--output", str(path), "this is a folder; name a file.png in it"))
    if wrong:
        raise UserError(wrong)
    image = drawn(sheet(Training(settings, source), pictures, draws), "What training sees", headline(settings))
    try:
        with whole(path) as part:
            image.save(part, format="PNG", dpi=(DPI, DPI))
    except OSError as error:
        raise UserError(Problem("--output", str(path), f"can't be written ({error.strerror}); name another file")) from None


def drawn(columns: Sequence[Column], title: str, line: str) -> Image:
    """The columns side by side, with nothing around the pictures but their titles and notes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from PIL import Image

    rows, pitch = len(columns[0].pictures), BOX + TEXT
    width = max(2 * MARGIN + len(columns) * (BOX + GAP) + GAP, 640)
    height = HEAD + rows * pitch + MARGIN // 2
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a class may be called anything
        matplotlib.rcdefaults()  # whatever the user's own style says
        matplotlib.rcParams.update({"text.parse_math": False, "text.color": INK, "font.size": 7})
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        figure.text(MARGIN / width, 1 - 34 / height, title, size=10, weight="bold")
        figure.text(MARGIN / width, 1 - 62 / height, line, size=7.5, color=GREY)
        for number, column in enumerate(columns):
            x = MARGIN + number * (BOX + GAP) + (GAP if number else 0)  # the pictures themselves stand a little apart
            figure.text((x + BOX / 2) / width, 1 - (HEAD - 10) / height, plain(column.title, LETTERS), ha="center")
            for row, (picture, note) in enumerate(zip(column.pictures, column.notes, strict=True)):
                y = HEAD + row * pitch
                boxed = _boxed(picture)
                right, down = (BOX - boxed.shape[1]) // 2, (BOX - boxed.shape[0]) // 2
                left, below = x + right, height - y - down - boxed.shape[0]
                edge = Rectangle(
                    (left - 0.5, below - 0.5), boxed.shape[1] + 1, boxed.shape[0] + 1, fill=False, edgecolor=RULE, linewidth=0.5
                )
                figure.add_artist(edge).set_transform(None)  # px: a white picture is seen to end
                figure.figimage(boxed, left, below)
                if note:
                    figure.text((x + BOX / 2) / width, 1 - (y + BOX + 16) / height, plain(note, LETTERS), ha="center", size=6, color=GREY)
        canvas.draw()
        wide, high = canvas.get_width_height()
        return Image.frombuffer("RGBA", (wide, high), bytes(canvas.buffer_rgba()), "raw", "RGBA", 0, 1).convert("RGB")


def _boxed(pixels: np.ndarray) -> np.ndarray:
    """The whole picture, as large as fits the box: uint8 [h, w, 3] -> [h', w', 3]"""
    from PIL import Image

    factor = BOX / max(pixels.shape[:2])
    tiny = factor >= TINY
    scale = math.floor(factor) if tiny else factor
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    how = Image.Resampling.NEAREST if tiny else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize(size, how))
