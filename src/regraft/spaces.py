"""A search's space, written in Hydra's sweep grammar: which parameters a trial has, given the groups' entries that it has chosen.

Groups are chosen first. A plain axis then has, of its values, those that the chosen entries take: `model=resnet,vgg` with
`model.depth=18,34,11,13` is a depth of 18 or 34 for the one and of 11 or 13 for the other. What is left of an axis is a parameter of its
own, named after the values (`model.depth[11,13]`), so that a name always means the same values; one value is no parameter, and of none the
axis does not exist.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from regraft.config import Composer, Job
from regraft.errors import Problem, UserError
from regraft.overrides import parsed, points, structural
from regraft.settings import UNDECIDING

if TYPE_CHECKING:
    from optuna.trial import Trial

TRIED = 64  # whole numbers of an interval that are tried one by one before the search; of more, the two ends
COMBINED = 256  # combinations of groups' entries in which a value is looked for that fits
Value = str | int | float


@dataclass(frozen=True)
class Parameter:
    """What a trial is asked for: one of some values, or a number of an interval. Optuna holds its value as a word or a number."""

    name: str
    values: tuple[str, ...] = ()  # as they are written in an override; none: an interval
    low: float = 0
    high: float = 0
    step: float | None = None  # of numbers in even steps; None: words, or an interval
    log: bool = False
    whole: bool = False  # whether it is whole numbers

    def suggest(self, trial: Trial) -> str:
        """A trial's value, as it is written in an override."""
        if self.values and self.step is None:
            return str(trial.suggest_categorical(self.name, self.values))
        if self.whole:
            return str(trial.suggest_int(self.name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log))
        value = trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)
        if self.values:
            return min(self.values, key=lambda each: abs(float(each) - value))
        short = f"{value:.6g}"  # what a reader can bear; samplers see no difference
        return short if self.low <= float(short) <= self.high else repr(value)

    def points(self) -> list[Value]:
        """All values, as Optuna holds them."""
        if self.step is None:
            return list(self.values)
        return [int(each) if self.whole else self.low + self.step * number for number, each in enumerate(self.values)]

    def ends(self) -> tuple[str, ...]:
        """The values that are tried before a search: all, or an interval's two ends."""
        return self.values or ((str(int(self.low)), str(int(self.high))) if self.whole else (repr(self.low), repr(self.high)))


@dataclass(frozen=True)
class Axis:
    """A key with the values that it may have."""

    key: str
    element: str  # the key as it was written: with its + or package
    given: str  # its values as they were written
    group: bool  # whether Hydra composes it
    whole: Parameter  # all of them

    def of(self, values: Sequence[str]) -> Parameter:
        """Some of the values as a parameter."""
        if len(values) == len(self.whole.values):
            return self.whole
        return Parameter(f"{self.key}[{','.join(values)}]", tuple(values))


@dataclass(frozen=True)
class Point:
    """A trial's values: the overrides that they are."""

    lines: tuple[str, ...]

    def overrides(self, fixed: Sequence[Override]) -> tuple[Override, ...]:
        """As a job takes them."""
        return next(points([*fixed, *parsed(self.lines)]))


class Space:
    """All points that the axes of a command span."""

    def __init__(self, composer: Composer, given: Sequence[Override]) -> None:
        """Raises UserError for axes that can't be searched."""
        self._composer, problems = composer, []
        self.fixed = [override for override in given if not override.is_sweep_override()]
        self.axes: list[Axis] = []
        for override in given:
            if override.is_sweep_override():
                try:
                    self.axes.append(_axis(override))
                except UserError as error:
                    problems += error.problems
        if not self.axes and not problems:
            problems.append(Problem("sweeper", None, "a search needs an axis: optimizer.lr=tag(log,interval(1e-4,1e-1)), model=resnet,vgg"))
        if problems:
            raise UserError(problems)
        self._fitting: dict[tuple[str, ...], list[tuple[Axis, Parameter]]] = {}
        self._refused: dict[tuple[str, str], list[Problem]] = {}  # (key, value) -> why the last entries that refused it did

    @property
    def groups(self) -> list[Axis]:
        return [axis for axis in self.axes if axis.group]

    def job(self, point: Point, number: int = 0, trial: dict[str, Any] | None = None) -> Job:
        """A point as a job. Raises UserError where it can't be."""
        return self._composer.job(point.overrides(self.fixed), number, False, trial)

    def point(self, ask: Callable[[Parameter], str]) -> Point:
        """What a trial that answers so chooses. Raises UserError for an interval of which the chosen entries refuse one end."""
        chosen = tuple(ask(axis.whole) if len(axis.whole.values) > 1 else axis.whole.values[0] for axis in self.groups)
        values = {axis.key: value for axis, value in zip(self.groups, chosen, strict=True)}
        for axis, parameter in self.fitting(chosen):
            values[axis.key] = parameter.values[0] if len(parameter.values) == 1 else ask(parameter)
        return Point(tuple(f"{axis.element}={values[axis.key]}" for axis in self.axes if axis.key in values))

    def fitting(self, chosen: tuple[str, ...]) -> list[tuple[Axis, Parameter]]:
        """The plain axes that there are with these entries of the groups, each with what they take of it."""
        if chosen not in self._fitting:
            entries = parsed(f"{axis.element}={value}" for axis, value in zip(self.groups, chosen, strict=True))
            found, problems = [], []
            for axis in self.axes:
                if axis.group:
                    continue
                fit = [value for value in axis.whole.ends() if self._fits(axis, value, entries)]
                if axis.whole.values:
                    found += [(axis, axis.of(fit))] if fit else []
                elif len(fit) == 2:
                    found.append((axis, axis.whole))
                elif fit:
                    [end] = set(axis.whole.ends()) - set(fit)
                    problems += self._refused[axis.key, end]
            if problems:
                raise UserError(problems)
            self._fitting[chosen] = found
        return self._fitting[chosen]

    def _fits(self, axis: Axis, value: str, entries: Sequence[Override]) -> bool:
        """Whether nothing is said against a value by itself."""
        try:
            self._composer.job(next(points([*self.fixed, *entries, *parsed([f"{axis.element}={value}"])])), 0, False)
        except UserError as error:
            own = [problem for problem in error.problems if problem.key == axis.key or problem.key.startswith(f"{axis.key}.")]
            if own:
                self._refused[axis.key, value] = own
            return not own
        return True

    def combinations(self) -> Iterator[tuple[str, ...]]:
        """All choices of the groups' entries; first some in which each entry of each group stands once."""
        values = [axis.whole.values for axis in self.groups]
        diagonal = [tuple(each[number % len(each)] for each in values) for number in range(max(map(len, values), default=1))]
        yield from dict.fromkeys(itertools.chain(diagonal, itertools.product(*values)))

    def points(self) -> Iterator[dict[str, Value]]:
        """The grid, the last axis fastest: each point as Optuna holds it, by the parameters' names."""
        for chosen in itertools.product(*(axis.whole.values for axis in self.groups)):
            groups = {axis.whole.name: value for axis, value in zip(self.groups, chosen, strict=True) if len(axis.whole.values) > 1}
            plain = [parameter for _, parameter in self.fitting(chosen) if len(parameter.values) != 1]
            for values in itertools.product(*(parameter.points() for parameter in plain)):
                yield {**groups, **{parameter.name: value for parameter, value in zip(plain, values, strict=True)}}

    def checked(self) -> Job:
        """A first point that can be, as a job: the same for the same space. Raises UserError where there is none, where a value fits
        nowhere, or where trials could not be compared with each other."""
        first: Job | None = None
        wanted = {(axis.key, value): axis for axis in self.axes for value in axis.whole.ends()}
        problems: dict[Problem, None] = {}
        combinations = self.combinations()
        for chosen in itertools.islice(combinations, COMBINED):
            entries = {axis.whole.name: value for axis, value in zip(self.groups, chosen, strict=True)}
            try:
                fit = {(axis.key, value) for axis, parameter in self.fitting(chosen) for value in parameter.ends()}
                job = self.job(self.point(lambda parameter, entries=entries: entries.get(parameter.name, parameter.ends()[0])))  # type: ignore[misc]
            except UserError as error:
                problems |= dict.fromkeys(error.problems)
                continue
            first = first or job
            if job.settings.monitor != first.settings.monitor:
                both = f"{first.settings.monitor} and {job.settings.monitor}"
                raise UserError(
                    Problem("trainer.monitor", job.settings.trainer.monitor, f"trials would be judged by {both}; name one of them")
                )
            for key in (*entries.items(), *fit):
                wanted.pop(key, None)
            if not wanted:
                return first
        if first is None:
            raise UserError(problems)
        if next(combinations, None) is None:  # none is left in which they could fit
            nowhere = [problem for each in wanted for problem in self._refused.get(each, problems)]
            raise UserError(dict.fromkeys(nowhere))
        return first


def _axis(override: Override) -> Axis:
    """Raises UserError for what can't be an axis of a search."""
    key, given, sweep = override.key_or_group, str(override.input_line).partition("=")[2], override.value()
    if not isinstance(sweep, ChoiceSweep | RangeSweep | IntervalSweep):
        raise UserError(Problem(key, given, "this names no values; write them out (a,b)"))
    group, remedy = structural(override), ""
    if key == "trainer.monitor":
        remedy = "trials are compared by it; give one value"
    elif key.split(".")[0] in (*UNDECIDING, "hydra"):
        remedy = "it is the same for all trials of a search; give one value"
    elif sweep.tags - {"log"}:
        remedy = f"the tag {min(sweep.tags - {'log'})} means nothing here; log does: tag(log,interval(1e-4,1e-1))"
    elif "log" in sweep.tags and not isinstance(sweep, IntervalSweep):
        remedy = "log goes with an interval: tag(log,interval(1e-4,1e-1))"
    elif isinstance(sweep, IntervalSweep):
        if group:
            remedy = "entries have no order; write them out (a,b)"
        elif not sweep.start < sweep.end:  # type: ignore[operator]
            remedy = "the lower end comes first: interval(0,0.5)"
        elif "log" in sweep.tags and sweep.start <= 0:  # type: ignore[operator]
            remedy = "a logarithm needs numbers above 0: tag(log,interval(1e-4,1e-1))"
    if remedy:
        raise UserError(Problem(key, given, remedy))
    return Axis(key, override.get_key_element(), given, group, _parameter(key, override, sweep))


def _parameter(key: str, override: Override, sweep: ChoiceSweep | RangeSweep | IntervalSweep) -> Parameter:
    """All that an axis may be."""
    if isinstance(sweep, IntervalSweep):
        low, high, log = sweep.start, sweep.end, "log" in sweep.tags
        assert low is not None
        assert high is not None
        whole = isinstance(low, int) and isinstance(high, int)
        if whole and not log and high - low < TRIED:
            return Parameter(key, tuple(map(str, range(int(low), int(high) + 1))), low, high, 1, whole=True)
        return Parameter(key, (), low, high, log=log, whole=whole)
    sweep.shuffle = False  # a search has an order of its own
    values = tuple(dict.fromkeys(override.sweep_string_iterator()))
    if not values:
        raise UserError(Problem(key, str(override.input_line).partition("=")[2], "there is no value in it: range(1,4) is 1, 2 and 3"))
    if isinstance(sweep, ChoiceSweep):
        return Parameter(key, values)
    ends, step = sorted((float(values[0]), float(values[-1]))), abs(sweep.step)
    whole = all(isinstance(each, int) for each in (sweep.start, sweep.stop, sweep.step))
    return Parameter(key, tuple(sorted(values, key=float)), ends[0], ends[0] + step * (len(values) - 1), step, whole=whole)
