"""Rounds of trials: asked for together, run as any sweep's runs are, and told together; what is killed goes on as if it had not been.

Optuna's journal in the sweep's folder is all that a search remembers. A trial enters it whole, in one line, when all of its values are
drawn, by a sampler whose seed is a function of (seed, number of trials before it): the same command asks for the same trials, however
often it was killed in between. Trials of a round that are not told yet are run again, which resumes them, before others are asked for.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regraft import dispatch, manifest, pruning, sweep
from regraft.config import Composer, Plan
from regraft.errors import Problem, UserError, shown
from regraft.files import digest
from regraft.locks import Lock
from regraft.record import RunFolder
from regraft.report import words
from regraft.settings import GROUPS, UNDECIDING
from regraft.spaces import Point, Space
from regraft.sweepers import Optuna
from regraft.tasks import LOWER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hydra.core.override_parser.types import Override
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from regraft.sweep import Planned

JOURNAL, ALONE = "search.journal", ".search"
FAILURES = (5, 20)  # trials in a row that may fail (at least as many as a round has): before any has ended well, and later
MISSES = 100  # points in a row that a sampler may ask for and that can't be
STOPPED = "stopped at a trial that failed (sweep.on_error=stop); sweep.retry=true tries it again"
INTERRUPTIONS = 2  # of one trial under one command
SHOWN = 12  # combinations of groups' entries that are shown


@dataclass(frozen=True)
class Found:
    """What a search has come to."""

    folders: list[RunFolder]  # of all trials, in their order, each once
    axes: list[str]  # as tables name them
    line: str  # how many trials, and the best
    whole: bool  # whether there are as many as were asked for


class Search:
    """A space, its journal, and the sampler that the command asks for."""

    def __init__(self, composer: Composer, given: Sequence[Override]) -> None:
        """Checks the space, and opens the data of its first point. Raises UserError with what is wrong."""
        self.space = Space(composer, given)
        job = self.space.checked()
        self.s, self.opened = job.settings, Plan([job])
        assert isinstance(self.s.sweeper, Optuna)
        self.spec: Optuna = self.s.sweeper
        problems = list(self._unfit())
        if problems:
            raise UserError(problems)
        [self.first] = sweep.plan([job], self.opened)
        assert self.first.sweep is not None
        self.at = self.first.sweep
        if not self.first.data["sizes"]["val"]:
            remedy = "a search compares its trials on val, and the set has no val pictures; give it some"
            raise UserError(Problem("dataset", self.s.dataset.name, remedy))
        self.lower = self.s.monitor.partition("/")[2] in LOWER

    def _unfit(self) -> Iterator[Problem]:
        """What the sampler and the pruner can't do with this space."""
        for axis in self.space.axes if self.spec.sampler == "grid" else ():
            if not axis.whole.values:
                remedy = (
                    "sweeper.sampler=grid runs each point once, and this has no points; range(0,1,step=0.1) would work, or another sampler"
                )
                yield Problem(axis.key, axis.given, remedy)
        several = self.s.trainer.max_steps is not None or any(axis.key == "trainer.max_epochs" for axis in self.space.axes)
        if self.spec.pruner == "hyperband" and several:
            yield Problem("sweeper.pruner", "hyperband", "its brackets are parts of one trainer.max_epochs for all trials; asha works")

    def asks(self) -> dict[str, Any]:
        """What a journal belongs to: all that makes its trials' values comparable."""
        deciding = {key: spec.deciding() for key, spec in self.s.specs() if key.split(".")[0] not in UNDECIDING}
        first = {f"{key}.{name}": value for key, values in deciding.items() for name, value in values.items()}
        first |= {"seed": self.s.seed, "data.size": self.s.size, "trainer.monitor": self.s.monitor}
        first |= {"dataset": self.first.data["fingerprint"], "model.weights": self.s.origin.identity}
        asks: dict[str, Any] = json.loads(json.dumps(first | {axis.key: axis.given for axis in self.space.axes}))
        return asks

    def study(self) -> Study:
        """The journal's study, begun where there is none. Raises UserError for one of another space."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = self.at / JOURNAL
        try:
            study = optuna.create_study(
                study_name=pruning.STUDY,
                storage=pruning.storage(path),
                sampler=optuna.samplers.RandomSampler(),  # it draws nothing: `_ask` does
                pruner=optuna.pruners.NopPruner(),
                direction="minimize" if self.lower else "maximize",
                load_if_exists=True,
            )
            asks, before = self.asks(), study.user_attrs.get("asks")
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise UserError(Problem(str(path), None, f"can't be read ({error}); remove it, or name another sweep.name")) from None
        if before is None:
            study.set_user_attr("asks", asks)
        elif before != asks:
            problems = [
                Problem(key, asks.get(key), f"the search in {path} has {_told(before, key)}; go on with that, or name another sweep.name")
                for key in dict.fromkeys([*asks, *before])
                if before.get(key) != asks.get(key)
            ]
            raise UserError(problems)
        return study

    def run(self, command: str, say: dispatch.Say) -> Found:
        """Go on until there are as many trials as asked for. Raises UserError where another process searches here, where the journal is
        another search's, and where trial after trial fails."""
        with self._alone():
            study = self.study()
            manifest.note(self.at, command, [], trials=self.spec.trials)
            again, interrupted = _failed(study) if self.s.sweep.retry else [], Counter[int]()
            stops = self.s.sweep.on_error == "stop"
            if not again and (reason := STOPPED if stops and _failed(study) else self._hopeless(study)):
                return self._found(study, reason)
            while trials := self._round(study, again):
                good, numbers = _good(study), [trial.number for trial in trials]
                say(f"trials {_span(numbers)}: {good} of {self.spec.trials} have ended")
                planned = self._planned(study, trials)
                jobs = {each.run_id: each for each in planned.values()}
                dispatch.run(list(jobs.values()), command, say)
                for trial in trials:
                    if not self._tell(study, trial, planned[trial.number]):
                        interrupted[trial.number] += 1
                if stops and {trial.number for trial in _failed(study)}.intersection(numbers):
                    return self._found(study, STOPPED)
                if INTERRUPTIONS in interrupted.values():
                    return self._found(study, "stopped at a trial that was interrupted twice; the same command goes on with it")
                if reason := self._hopeless(study):
                    return self._found(study, reason)
            short = _failed(study) if _good(study) < self.spec.trials else []  # a grid has no more points
            return self._found(study, f"{words.count(len(short), 'point')} failed; sweep.retry=true tries again" if short else "")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with ExitStack() as held:
            held.enter_context(manifest.working(self.at))
            try:
                held.enter_context(Lock(self.at / ALONE, alone=True, wait=False))
            except BlockingIOError:
                remedy = "another process searches in this folder; wait for it, stop it, or name another sweep.name"
                raise UserError(Problem(str(self.at), None, remedy)) from None
            yield

    # Asking

    def _round(self, study: Study, again: list[FrozenTrial]) -> list[FrozenTrial]:
        """The trials that are to run now: those of a round that has not ended, or those of a new one; none: the search is over."""
        trials = study.get_trials(deepcopy=False)
        running = [trial for trial in trials if trial.state.name == "RUNNING"]
        latest = max((trial.user_attrs.get("round", -1) for trial in trials), default=-1)
        members = [trial for trial in trials if trial.user_attrs.get("round") == latest]
        if running and len(running) == len(members):  # none of them is told, and so the asking may not have come to its end
            number, size = latest, running[0].user_attrs["size"]
        elif running:
            return running
        else:
            number, size = latest + 1, min(self.spec.together, self.spec.trials - _good(study))
        while len(running) < size and (trial := self._ask(study, {"round": number, "size": size}, again)):
            running.append(trial)
        return running

    def _ask(self, study: Study, attributes: dict[str, Any], again: list[FrozenTrial]) -> FrozenTrial | None:
        """One more trial in the journal; None: a grid has no more points. Raises UserError where the sampler finds no point that can be."""
        import optuna
        from optuna.trial import TrialState, create_trial

        for _ in range(MISSES):
            trials = study.get_trials(deepcopy=False)
            number = len(trials)
            scratch = optuna.create_study(
                study_name=pruning.STUDY, direction=study.direction, sampler=self._sampler(int(digest(self.spec.seed, number)[:8], 16))
            )
            scratch.add_trials(trials)
            if again:
                scratch.enqueue_trial(again.pop(0).params)
            elif self.spec.sampler == "grid":
                tried = [trial.params for trial in trials]
                left = next((point for point in self.space.points() if point not in tried), None)
                if left is None:
                    return None
                scratch.enqueue_trial(left)
            asked = scratch.ask()
            point, reason, told = None, None, attributes
            try:
                point = self.space.point(lambda parameter, asked=asked: parameter.suggest(asked))  # type: ignore[misc]
                [planned] = sweep.plan([self.space.job(point, number)], self.opened)
                told = {
                    **told,
                    "overrides": list(point.lines),
                    "run_id": planned.run_id,
                    "folder": os.path.relpath(planned.folder.path, self.at),
                }
            except UserError as error:
                reason = str(error)
                told = {"overrides": list(point.lines) if point else [], "reason": reason, "impossible": True}
            drawn = scratch.get_trials(deepcopy=False)[-1]
            study.add_trial(
                create_trial(
                    state=TrialState.FAIL if reason else TrialState.RUNNING,
                    params=drawn.params,
                    distributions=drawn.distributions,
                    system_attrs={key: value for key, value in drawn.system_attrs.items() if key != "fixed_params"},
                    user_attrs=told,
                )
            )
            if not reason:
                return study.get_trials(deepcopy=False)[-1]
        raise UserError(Problem("sweeper", self.spec.sampler, f"{MISSES} points in a row can't be; the last one: {reason}"))

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna import samplers

        startup = self.spec.startup
        makers: dict[str, Callable[[], BaseSampler]] = {
            "tpe": lambda: samplers.TPESampler(n_startup_trials=startup, seed=seed, constant_liar=True),
            "cmaes": lambda: samplers.CmaEsSampler(n_startup_trials=startup, seed=seed, warn_independent_sampling=False),
            "random": lambda: samplers.RandomSampler(seed=seed),
            "grid": lambda: samplers.RandomSampler(seed=seed),  # it draws nothing: its points are given
        }
        return makers[self.spec.sampler]()

    # Running and telling

    def _planned(self, study: Study, trials: Sequence[FrozenTrial]) -> dict[int, Planned]:
        """Each trial's run, by the trial's number; trials that ask for the same have one run. Raises UserError where one can't be."""
        journal = str(self.at / JOURNAL)
        jobs = []
        for trial in trials:
            told = {"journal": journal, "study": pruning.STUDY, "number": trial.number, "round": trial.user_attrs["round"]}
            jobs.append(self.space.job(Point(tuple(trial.user_attrs["overrides"])), trial.number, told))
        runs = {each.run_id: each for each in sweep.plan(jobs, self.opened)}
        if lost := [trial.number for trial in trials if trial.user_attrs["run_id"] not in runs]:
            remedy = f"trials {_span(lost)} were of other data or weights than this command finds; name another sweep.name"
            raise UserError(Problem(journal, None, remedy))
        return {trial.number: runs[trial.user_attrs["run_id"]] for trial in trials}

    def _tell(self, study: Study, trial: FrozenTrial, planned: Planned) -> bool:
        """Tell the study what has become of a trial; whether it has ended."""
        from optuna.trial import TrialState

        record = planned.folder.record if planned.folder.exists else {}
        value = pruning.value(record, self.s.monitor)
        match record.get("status"):
            case "done" if value is not None:
                study.tell(trial.number, value)
            case "pruned":
                study.tell(trial.number, state=TrialState.PRUNED)
            case "done" | "failed":
                study.tell(trial.number, state=TrialState.FAIL)
            case _:
                return False
        return True

    def _hopeless(self, study: Study) -> str:
        """Why it is of no use to go on: trial after trial has failed, of whatever runs; empty: it is."""
        ran = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished() and "folder" in trial.user_attrs]
        row = max(self.spec.together, FAILURES[bool(_good(study))])
        if len(ran) < row or any(trial.state.name != "FAIL" for trial in ran[-row:]):
            return ""
        return f"stopped, since {row} in a row failed; once that is mended, sweep.retry=true tries them again"

    # Telling of it

    def _found(self, study: Study, reason: str = "") -> Found:
        trials = study.get_trials(deepcopy=False)
        folders = dict.fromkeys(self.at / trial.user_attrs["folder"] for trial in trials if "folder" in trial.user_attrs)
        states = Counter(trial.state.name for trial in trials)
        good = states["COMPLETE"] + states["PRUNED"]
        called = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "interrupted"}
        parts = [f"{good} of {self.spec.trials} trials", ", ".join(f"{states[key]} {word}" for key, word in called.items() if states[key])]
        if states["COMPLETE"]:
            best = study.best_trial
            parts.append(f"best {self.s.monitor} {best.value:.4f}: {shlex.join(best.user_attrs['overrides'])}")
        axes = [f"{axis.key}.name" if axis.key in GROUPS else axis.key for axis in self.space.axes]
        existing = [folder for path in folders if (folder := RunFolder(path)).exists]
        return Found(
            existing, axes, "; ".join([*filter(None, parts), *([reason] if reason else [])]), good >= self.spec.trials or not reason
        )

    def ahead(self) -> Iterator[str]:
        """What `regraft check` says of it; nothing is written."""
        spec = self.spec
        startup = f", the first {spec.startup} at random" if spec.sampler in ("tpe", "cmaes") else ""
        pruned = "" if spec.pruner == "none" else f", pruned by {spec.pruner}"
        trials = words.count(spec.trials, "trial")
        yield f"a search of {trials}, {spec.together} at a time, by {spec.sampler}{startup}{pruned}; nothing wrong"
        yield f"  the {'lowest' if self.lower else 'highest'} {self.s.monitor} is the best"
        for axis in self.space.axes:
            yield f"  {axis.key}={axis.given}"
        combinations = list(itertools.islice(self.space.combinations(), SHOWN + 1))
        for chosen in combinations[:SHOWN] if self.space.groups else ():
            entries = ", ".join(f"{axis.key}={entry}" for axis, entry in zip(self.space.groups, chosen, strict=True))
            try:
                parts = (f"{axis.key} {','.join(parameter.values) or axis.given}" for axis, parameter in self.space.fitting(chosen))
                yield f"    {entries}: {'; '.join(parts) or 'nothing else'}"
            except UserError as error:
                yield f"    {entries}: can't be ({error})"
        if len(combinations) > SHOWN:
            yield "    ..."
        if (self.at / JOURNAL).is_file():
            study = self.study()
            yield f"  {_good(study)} of {spec.trials} have ended already"


def _good(study: Study) -> int:
    """Trials that count."""
    return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.get_trials(deepcopy=False))


def _failed(study: Study) -> list[FrozenTrial]:
    """Trials whose run has failed, and of which no later one was another try."""
    trials = study.get_trials(deepcopy=False)
    latest = {trial.user_attrs.get("run_id"): trial.number for trial in trials}
    return [
        trial
        for trial in trials
        if trial.state.name == "FAIL" and "folder" in trial.user_attrs and latest[trial.user_attrs["run_id"]] == trial.number
    ]


def _span(numbers: Sequence[int]) -> str:
    """`4 to 7`, or `4, 6`."""
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _told(before: dict[str, Any], key: str) -> str:
    return f"{key}={shown(before[key])}" if key in before else f"no {key}"
