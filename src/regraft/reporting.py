"""`regraft report`: run folders -> one page, tables and figures, in a folder beside them."""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from regraft import files
from regraft.errors import UserError
from regraft.report import answered, charts, exports, page, rows
from regraft.report.rows import Board, Run

PAGE, RESULTS, MARKDOWN, LATEX, FIGURES = "index.html", "results.csv", "table.md", "table.tex", "figures"
SIDE = 160  # px of a shown picture
SCALE = 2  # of PNG files: 2 px for each of the figure's


def command(folders: Sequence[str], output: str | None, axes: Sequence[str], title: str | None, tell: Callable[[str], None]) -> int:
    """Write index.html, results.csv, table.md, table.tex and figures/ into `output`, or into report/ inside the first folder. Raises
    UserError for a folder without runs, and for axes that no run has."""
    runs = rows.read(folders)
    boards = rows.boards(runs, axes or None)
    out = Path(output).expanduser().absolute() if output else Path(folders[0]).expanduser().absolute() / "report"
    words = ["regraft", "report", *folders, *(["--output", output] if output else []), *(["--axes", ",".join(axes)] if axes else [])]
    write(runs, boards, out, title or f"Runs of {', '.join(Path(folder).name or str(folder) for folder in folders)}", shlex.join(words))
    for board in boards:
        for warning in board.warnings():
            tell(f"{board.name}: {warning}")
    tell(str(out / PAGE))
    return 0


def write(runs: Sequence[Run], boards: Sequence[Board], out: Path, title: str, command: str) -> None:
    """The page, tables and figures of these runs, which `command` made."""
    parts = [page.Part.of(board) for board in boards]
    exports.results(runs, out / RESULTS)
    exports.markdown(boards, out / MARKDOWN)
    exports.latex(boards, out / LATEX)
    for at, part in enumerate(parts):
        _draw(part.charts, out / FIGURES, f"{at + 1}-" if len(parts) > 1 else "")
    page.write(out / PAGE, title, command, runs, parts, answered.across(boards), thumbnails)


def stem(chart: str) -> str:
    """What the file of a figure of this name is called."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in chart)


def _draw(drawn: Sequence[charts.Chart], out: Path, prefix: str) -> None:
    """Each figure as PNG and as PDF."""
    import vl_convert

    for chart in drawn:
        spec = charts.written(chart.spec)
        name = f"{prefix}{stem(chart.name)}"
        for suffix, data in (("png", vl_convert.vegalite_to_png(spec, scale=SCALE)), ("pdf", vl_convert.vegalite_to_pdf(spec))):
            with files.whole(out / f"{name}.{suffix}") as part:
                part.write_bytes(data)


def thumbnails(run: Run, names: Sequence[str]) -> dict[str, bytes]:
    """These of the run's pictures as small JPEG files; those that are no pictures, or can't be read here, are left out."""
    from PIL import Image

    from regraft import settings
    from regraft.record import RunFolder

    try:
        chosen = settings.settings(RunFolder(run.path).config)
        source = chosen.dataset.opened(chosen.cache.folder())
    except (UserError, OSError):
        return {}
    if source.input != "pictures":
        return {}
    wanted, found = set(names), {}
    for sample in source.samples:
        if sample.id in wanted:
            try:
                picture = Image.fromarray(source.read(sample))
            except (UserError, OSError, ValueError):
                continue
            picture.thumbnail((SIDE, SIDE))
            held = io.BytesIO()
            picture.convert("RGB").save(held, "JPEG", quality=85)
            found[sample.id] = held.getvalue()
    return found
