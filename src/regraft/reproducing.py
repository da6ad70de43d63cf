"""`regraft reproduce`: a run's record is checked against what is here, the run is run again in a new folder, and both are compared."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from regraft import dispatch, settings, sweep
from regraft.config import Job
from regraft.errors import Problem, UserError, nearest
from regraft.record import METRICS, MODEL, PREDICTIONS, Metrics, RunFolder, environment
from regraft.report import differing, rows, words

IDENTICAL, WITHIN, DIFFERENT, REFUSED = "identical", "within tolerance", "different", "not run"
HERE = {"launcher": {"name": "local", "jobs": "auto"}, "logger": {"csv": {"name": "csv"}}}  # where and how it runs again
ELSEWHERE = (
    "dataset.path",
    "dataset.images",
    "dataset.annotations",
    "cache.dir",
    "model.weights",
)  # keys of files, which may lie elsewhere
SHOWN = 6  # packages that are named


@dataclass
class Verdict:
    """What became of one run."""

    original: RunFolder
    again: RunFolder | None = None
    word: str = REFUSED
    why: str = ""  # since where it differs, or why it was not run
    checks: dict[str, str] = field(default_factory=dict)  # code, packages, data, weights, machine -> what was found
    how: str = ""  # alone, or with its group

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        folders = {"run": str(self.original.path), "again": str(self.again.path) if self.again else None}
        return {**folders, "verdict": self.word, "why": self.why, "how": self.how, "checks": self.checks}


def command(word: str, changes: Sequence[str], output: str | None, tolerance: float, as_json: bool, say: Callable[[Any], None]) -> int:
    """Each done run of a folder again; 0: all are identical or within the tolerance, 1: one is not, or could not be run.

    `changes`: where files lie on this machine (dataset.path=...). Raises UserError for a folder without a done run, and for changes that
    would make it another run.
    """
    runs = [run for run in rows.read([word]) if run.status == "done"]
    if not runs:
        raise UserError(Problem("RUN", word, "no run in it is done: there is nothing to compare with"))
    root = Path(output).expanduser().absolute() if output else Path("multirun", "reproduced").absolute()
    given = _changes(changes)
    verdicts = []
    for group in _groups([RunFolder(run.path) for run in runs], Path(word).expanduser().absolute()):
        verdicts += _again(group, given, root, f"regraft reproduce {shlex.quote(word)}", tolerance, (lambda what: None) if as_json else say)
    wanted = {run.path for run in runs}
    verdicts = [verdict for verdict in verdicts if verdict.original.path in wanted]
    if as_json:
        say(json.dumps([verdict.plain() for verdict in verdicts], indent=2, ensure_ascii=False))
    else:
        for verdict in verdicts:
            say(_told(verdict))
    return 0 if all(verdict.word in (IDENTICAL, WITHIN) for verdict in verdicts) else 1


def _changes(changes: Sequence[str]) -> dict[str, Any]:
    found = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or key not in ELSEWHERE:
            hint = nearest(key, ELSEWHERE) or f"there are {', '.join(ELSEWHERE)}"
            raise UserError(Problem(key, value or None, f"only where files lie may be told anew, anything else is another run; {hint}"))
        found[key] = yaml.safe_load(value)
    return found


def _groups(folders: Sequence[RunFolder], at: Path) -> list[list[RunFolder]]:
    """The runs in the groups that they were trained in; of a single run's group, the others that lie beside it come too."""
    beside = folders if len(folders) > 1 or at != folders[0].path else [*folders, *_siblings(folders[0])]
    groups: dict[Any, list[RunFolder]] = {}
    for folder in beside:
        group = folder.record.get("group") or {}
        groups.setdefault(group.get("id") or folder.path, []).append(folder)
    return [sorted(group, key=lambda folder: (folder.record.get("group") or {}).get("number", 0)) for group in groups.values()]


def _siblings(folder: RunFolder) -> list[RunFolder]:
    wanted = (folder.record.get("group") or {}).get("id")
    found = []
    for path in sorted(folder.path.parent.iterdir()) if wanted else ():
        other = RunFolder(path)
        if other.path != folder.path and other.exists:
            try:
                found += [other] if (other.record.get("group") or {}).get("id") == wanted and other.record["status"] == "done" else []
            except UserError:
                continue  # damaged: it is not here
    return found


def _again(
    group: Sequence[RunFolder], given: dict[str, Any], root: Path, command: str, tolerance: float, say: Callable[[Any], None]
) -> list[Verdict]:
    """The runs of one group, run again as they were: together where all of them are here."""
    size = (group[0].record.get("group") or {"size": 1})["size"]
    whole = len(group) == size
    how = "alone, as it was" if size == 1 else f"with its group of {size}"
    if not whole:
        how = f"apart from {words.count(size - len(group), 'run')} of its group, which {'is' if size - len(group) == 1 else 'are'} not here"
    verdicts = [Verdict(folder, how=how) for folder in group]
    jobs, fresh = [], _fresh(root, [folder.record["run_id"] for folder in group])
    for number, verdict in enumerate(verdicts):
        config = _config(verdict.original, given)
        hydra = {"run": {"dir": str(root / fresh)}, "sweep": {"dir": str(root), "subdir": fresh}}
        overrides = tuple(verdict.original.record.get("overrides") or ())
        jobs.append(Job(overrides, config, settings.checked(config), hydra, number, single=len(verdicts) == 1))
    planned = {verdict.original.path: sweep.plan([job])[0] for verdict, job in zip(verdicts, jobs, strict=True)}
    ready = []
    for verdict in verdicts:
        each = planned[verdict.original.path]
        verdict.checks = _checks(verdict.original.record, each)
        if each.run_id != verdict.original.record["run_id"]:
            wrong = [name for name in ("data", "weights") if not verdict.checks[name].startswith("same")]
            verdict.why = f"{' and '.join(wrong) or 'what decides a run is'} not what the record names"
        else:
            ready.append((verdict, each))
    if not ready:
        return verdicts
    if len({each.folder.path for _, each in ready}) < len(ready):
        raise UserError(Problem("RUN", str(root), "two runs of the same id are asked for; name one of their folders"))
    dispatch.run([each for _, each in ready], command, say)
    for verdict, each in ready:
        verdict.again = each.folder
        _compare(verdict, tolerance)
    return verdicts


def _fresh(root: Path, run_ids: Sequence[str]) -> str:
    """The name of folders that hold no such run that is done: what was compared once is not compared again instead of run."""
    for number in itertools.count(1):
        name = "${run_id}" if number == 1 else f"${{run_id}}-{number}"
        folders = [RunFolder(root / name.replace("${run_id}", run_id)) for run_id in run_ids]
        if not any(folder.exists and folder.record["status"] == "done" for folder in folders):
            return name
    raise AssertionError("itertools.count ends nowhere")


def _config(folder: RunFolder, given: dict[str, Any]) -> dict[str, Any]:
    config = {**folder.config, **HERE}
    config["sweep"] = {**(config.get("sweep") or {}), "retry": True}
    config["sweeper"] = {"name": "grid"}
    for dotted, value in given.items():
        section, _, key = dotted.partition(".")
        if key not in (config.get(section) or {}):
            raise UserError(Problem(dotted, value, f"{folder.path} has no such key in its config"))
        config[section] = {**config[section], key: value}
    return config


def _checks(record: dict[str, Any], each: sweep.Planned) -> dict[str, str]:
    """What the record says of code, packages, data, weights and machine, beside what is here."""
    here = environment()
    found = {}
    for name in ("code", "packages", "machine"):
        facts = differing.facts(record.get(name) or {}, here[name] or {})
        told = [f"{fact.key} {words.value(fact.first)} then, {words.value(fact.second)} now" for fact in facts]
        more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
        found[name] = "; ".join(told[:SHOWN]) + more if told else "same"
    if not record.get("code"):
        found["code"] = "the record does not tell"
    then, now = words.at(record, "data.fingerprint"), each.data["fingerprint"]
    found["data"] = "same" if then == now else f"fingerprint {words.value(then)[:12]} then, {now[:12]} now"
    then, now = words.at(record, "weights.identity"), each.job.settings.origin.identity
    found["weights"] = "same" if then in (None, now) else f"{words.value(then)[:24]} then, {now[:24]} now"
    return found


def _compare(verdict: Verdict, tolerance: float) -> None:
    then, now = verdict.original.record, (verdict.again or verdict.original).record
    if now["status"] != "done":
        verdict.word, verdict.why = REFUSED, f"it {now['status']}: {words.first(words.error(now))}"
        return
    digests = [{name: words.at(record, "sha256").get(name) for name in (MODEL, PREDICTIONS)} for record in (then, now)]
    if digests[0] == digests[1] and then["metrics"] == now["metrics"]:
        verdict.word = IDENTICAL
        return
    apart = {name: abs(now["metrics"].get(name, float("inf")) - value) / max(1.0, abs(value)) for name, value in then["metrics"].items()}
    name, most = max(apart.items(), key=lambda item: item[1])
    verdict.word = WITHIN if most <= tolerance else DIFFERENT
    since = _since(verdict.original, verdict.again or verdict.original, 0.0 if verdict.word == WITHIN else tolerance)
    told = (
        "the metrics are the same, weights or answers are not"
        if most == 0
        else _apart(name, then["metrics"][name], now["metrics"].get(name))
    )
    verdict.why = f"{told}{f'; {since}' if since else ''}"


def _apart(name: str, then: float, now: float | None) -> str:
    return f"{name} {then:.6g} then, none now" if now is None else f"{name} {then:.6g} then, {now:.6g} now, {abs(now - then):.1g} apart"


def _since(original: RunFolder, again: RunFolder, tolerance: float) -> str:
    """The first epoch and metric that are further apart."""
    then = {(int(row["epoch"]), row["metric"]): float(row["value"]) for row in Metrics(original / METRICS).rows()}
    now = {(int(row["epoch"]), row["metric"]): float(row["value"]) for row in Metrics(again / METRICS).rows()}
    for epoch, metric in then:
        value, other = then[epoch, metric], now.get((epoch, metric))
        if other is None:
            return f"since epoch {epoch}, which has no {metric} now"
        if abs(value - other) > tolerance * max(1.0, abs(value)):
            return f"since epoch {epoch}: {_apart(metric, value, other)}"
    return ""


def _told(verdict: Verdict) -> str:
    name = words.shorter(verdict.original.path)
    lines = [f"{words.plain(name)}: {verdict.word}{f' ({verdict.why})' if verdict.why else ''}"]
    lines += [f"  {check}: {words.plain(found)}" for check, found in verdict.checks.items()]
    if verdict.again:
        lines += [f"  run again {verdict.how}, in {words.plain(words.shorter(verdict.again.path))}"]
    return "\n".join(lines)
