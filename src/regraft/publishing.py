"""`regraft paper`: a paper's sweeps are run, its table and figures written, and each of its claims judged by them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from regraft import config, dispatch, files, papers, reporting, sweep
from regraft.errors import Problem, UserError, said
from regraft.papers import Paper, Step
from regraft.record import CONFIG, ENDED, RECORD, RunFolder
from regraft.report import claims, rows, words
from regraft.report.claims import Verdict

RUNS, RECORDS, PAGE, VERDICTS = "runs", "records", "paper.md", "verdicts.json"
Say = Callable[[Any], None]


def listed() -> str:
    """The papers that there are, a line each."""
    found = {name: papers.read(name) for name in papers.names()}
    wide = max(map(len, found), default=0)
    return "\n".join(f"{name:<{wide}}  {paper.title}{'' if paper.runs else ' (needs data: see --show)'}" for name, paper in found.items())


def shown(name: str, full: bool, changes: Sequence[str]) -> str:
    """What would be run, and what would be judged; nothing is."""
    paper = papers.read(name)
    full = full or not paper.runs
    lines = [paper.title, paper.cite, "", f"claim: {paper.claim}", f"budget: {paper.budget}", f"differs: {paper.differs}"]
    lines += [f"needs: {paper.needs}"] if paper.needs else []
    lines += ["", *(shlex.join(["regraft", "train", "-m", *_placed(step, {}, changes)]) for step in _steps(paper, name, full))]
    lines += ["", *(f"- {claim.says}" for claim in paper.statements(full))]
    return "\n".join(lines)


def command(name: str, full: bool, changes: Sequence[str], output: str | None, say: Say) -> int:
    """Run a paper's sweeps into runs/ of the output, then write its table, figures, page, records and verdicts beside them; 0: all runs are
    done, whatever the verdicts; 1: some are not, and the claims are judged by the others.

    Raises UserError for a paper that is none, for an output that holds something else, and with everything that is missing of what its
    runs need.
    """
    paper = papers.read(name)
    full = full or not paper.runs
    steps = _steps(paper, name, full)
    own = Path(name).stem if name not in papers.names() else name
    out = (Path(output).expanduser() if output else Path("multirun", "papers", f"{own}-full" if full and paper.runs else own)).absolute()
    if out.exists() and not (out / PAGE).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(Problem("--output", str(out), f"holds something else, and no {PAGE}; name a new folder"))
    told = shlex.join(["regraft", "paper", name, *(["--full"] if full else []), *changes, *(["--output", output] if output else [])])
    try:
        folders, whole = _run(steps, out, changes, told, say)
    except UserError as error:
        raise UserError([*error.problems, Problem(f"{name} --full", None, f"needs {paper.needs}")] if full else error.problems) from None
    runs = [rows.Run.read(folder) for folder in folders]  # these, whatever other runs an earlier command has left beside them
    axes = [axis for axis in paper.axes if any(axis in run.config for run in runs)]
    boards = rows.boards(runs, axes)
    verdicts = claims.judged(paper.statements(full), boards)
    shutil.rmtree(out / reporting.FIGURES, ignore_errors=True)
    reporting.write(runs, [board.choose(paper.chosen) for board in boards], out, paper.title, told)
    files.write_text(out / reporting.RESULTS, _seen((out / reporting.RESULTS).read_text("utf-8"), out))
    _records(out, folders)
    files.write_text(out / VERDICTS, json.dumps([verdict.plain() for verdict in verdicts], indent=1, ensure_ascii=False) + "\n")
    files.write_text(out / PAGE, "\n".join(_page(paper, told, verdicts, out, runs)) + "\n")
    for verdict in verdicts:
        say(f"{verdict.word}: {verdict.claim.says}\n    {verdict.told}")
    for figure in paper.figures():
        say(f"published: {figure.what}: {figure.value} ({figure.source})")
    say(words.shorter(out / PAGE))
    return 0 if whole else 1


def _steps(paper: Paper, name: str, full: bool) -> list[Step]:
    steps = paper.steps(full)
    if not steps:
        raise UserError(Problem("NAME", name, f"it has no {'full size' if full else 'runs'}"))
    return steps


def _run(steps: Sequence[Step], out: Path, changes: Sequence[str], told: str, say: Say) -> tuple[list[RunFolder], bool]:
    """The run folders of all steps, and whether all of them are done. Nothing is written before the first step is found to be right."""
    found: dict[str, Path] = {}
    folders: list[RunFolder] = []
    whole, gone_on_from = True, _referred(steps)
    for step in steps:
        composer = config.Composer()
        jobs = composer.jobs([*_placed(step, found, changes), f"hydra.sweep.dir={_quoted(out / RUNS / step.name)}"], True)
        if step.name in gone_on_from and len(jobs) > 1:
            remedy = f"later steps go on from its one run, and these are {len(jobs)}; give each key one value, or a paper of your own"
            raise UserError(Problem(step.name, shlex.join(changes), remedy))
        planned = sweep.plan(jobs, skipped=composer.skipped)
        if not (out / PAGE).is_file():
            files.write_text(out / PAGE, f"    {told}\n\nis being run; this page is written when its runs have ended.\n")
        say(f"{step.name}: {words.count(len(planned), 'run')}")
        done = dispatch.run(planned, told, say)
        folders += done
        ended = [folder for folder in done if folder.record["status"] in ENDED]
        if step.name in gone_on_from and not ended:
            error = done[0].record["error"] if done else None
            why = f"has failed: {said(error)}" if error else "is not done yet, elsewhere perhaps; the same command goes on when it is"
            raise UserError(Problem(step.name, str(done[0].path) if done else None, f"later steps go on from this run, which {why}"))
        if len(ended) == 1:
            found[step.name] = ended[0].path
        whole = whole and len(ended) == len(planned)
    return folders, whole


def _placed(step: Step, folders: Mapping[str, Path], changes: Sequence[str]) -> list[str]:
    """A step's overrides with the run folders of earlier steps in their places, and changed ones in place of its own."""
    changed = {change.partition("=")[0] for change in changes}
    own = [override for override in step.overrides if override.partition("=")[0] not in changed]
    return [
        *(papers.PLACE.sub(lambda match: _quoted(folders[match[1]]) if match[1] in folders else match[0], each) for each in own),
        *changes,
    ]


def _referred(steps: Sequence[Step]) -> set[str]:
    """The steps whose one run later steps go on from."""
    return {name for step in steps for override in step.overrides for name in papers.PLACE.findall(override)}


def _quoted(path: Path) -> str:
    """As Hydra's grammar has it; seen from here, so that a record names no machine."""
    seen = words.shorter(path)
    return seen if re.fullmatch(r"[\w./-]+", seen) else "'" + re.sub(r"(['\\])", r"\\\1", seen) + "'"


def _records(out: Path, folders: Sequence[RunFolder]) -> None:
    """Each run's config and record, from which `regraft reproduce` runs it again. A record has a line for each of its keys: hundreds of
    them lie in a repository."""
    shutil.rmtree(out / RECORDS, ignore_errors=True)
    for folder in folders:
        lines = (f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in folder.record.items())
        for file, text in ((CONFIG, (folder / CONFIG).read_text("utf-8")), (RECORD, "{\n" + ",\n".join(lines) + "\n}\n")):
            files.write_text(out / RECORDS / folder.path.name / file, _seen(text, out))


def _seen(text: str, out: Path) -> str:
    """The runs of this paper named as they are from here, and would be on another machine."""
    return text.replace(str(out), words.shorter(out))


def _page(paper: Paper, told: str, verdicts: Sequence[Verdict], out: Path, runs: Sequence[rows.Run]) -> Iterator[str]:
    """paper.md: the question, the verdicts with their figures beside the published ones, the table and the figures."""
    yield f"# {paper.title}\n"
    yield f"{paper.cite}\n"
    yield f"**Claim.** {paper.claim}\n"
    yield f"**Here.** {paper.differs}\n"
    yield f"    {told}\n"
    seconds = sum(run.seconds or 0.0 for run in runs)
    yield f"{words.count(len(runs), 'run')}, {words.duration(seconds)} of work in them; {_machine(runs[0].record if runs else {})}.\n"
    yield "## Verdicts\n"
    for verdict in verdicts:
        yield f"- **{verdict.word}**: {verdict.claim.says}  \n  {verdict.told}\n"
    if published := paper.figures():
        yield "## As published\n"
        yield "| what | figure | source |\n|---|---|---|"
        for figure in published:
            yield f"| {figure.what} | {figure.value} | {figure.source} |"
        yield ""
    yield (out / reporting.MARKDOWN).read_text("utf-8").replace("\n## ", "\n### ").replace("## ", "## Table: ", 1)
    if drawn := _drawn(paper, out):
        yield "## Figures\n"
        yield from (f"![{name}]({name}.png)\n" for name in drawn)


def _drawn(paper: Paper, out: Path) -> list[str]:
    """The paper's figure of each data set, by name, laid beside the page."""
    for old in out.glob("*.png"):
        if re.fullmatch(rf"(\d+-)?(axis-.+|{'|'.join(papers.WHOLE)})", old.stem):
            old.unlink()
    stem = paper.figure if paper.figure in papers.WHOLE else f"axis-{reporting.stem(paper.figure)}"
    found = sorted(path for path in (out / reporting.FIGURES).glob("*.png") if re.fullmatch(rf"(\d+-)?{re.escape(stem)}", path.stem))
    for path in found:
        shutil.copyfile(path, out / path.name)
    return [path.stem for path in found]


def _machine(record: Mapping[str, Any]) -> str:
    machine, packages = record.get("machine") or {}, record.get("packages") or {}
    told = [f"{key} {words.value(value)}" for key, value in machine.items() if not isinstance(value, dict | list)]
    told += [f"{key} {packages[key]}" for key in ("torch", "pytorch-lightning", "timm") if key in packages]
    return words.plain(", ".join(told), 400)
