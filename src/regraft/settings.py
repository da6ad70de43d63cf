"""One run's settings, typed: plain config in, specs out, every mistake at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from regraft import (
    augment,
    datasets,
    freeze,
    hardware,
    heads,
    launchers,
    loggers,
    losses,
    models,
    optim,
    registry,
    schedules,
    sweepers,
    tasks,
    weights,
)
from regraft.cache import CacheSpec
from regraft.errors import Problem, UserError, nearest, shown
from regraft.files import digest
from regraft.hardware import Batch, divide
from regraft.registry import Group, Spec, parse
from regraft.sections import DataSpec, EvaluateSpec, SweepSpec, TrainerSpec

GROUPS: dict[str, Group] = {
    group.name: group
    for group in (
        models.GROUP,
        datasets.GROUP,
        freeze.GROUP,
        augment.GROUP,
        hardware.GROUP,
        tasks.GROUP,
        heads.GROUP,
        losses.GROUP,
        optim.GROUP,
        schedules.GROUP,
        loggers.GROUP,
        launchers.GROUP,
        sweepers.GROUP,
    )
}
SECTIONS: dict[str, type[Spec]] = {
    "data": DataSpec,
    "trainer": TrainerSpec,
    "cache": CacheSpec,
    "evaluate": EvaluateSpec,
    "sweep": SweepSpec,
}
LATER: dict[str, dict[str, Any]] = {  # keys that configs of earlier versions lack, and what held without them
    "cache": {"views": None},
    "dataset": {"labelled": None, "split_seed": 0, "shift": [], "corruption": None, "rename": None},
    "evaluate": {"views": False},
    "freeze": {"head": True},
    "head": {"kept": False},
    "launcher": {"jobs": "auto"},
    "sweeper": {"name": "grid"},
    "sweep": {"stack": True, "retry": False, "skip_invalid": False},
}
PLAIN = ("seed", "plots", "row")
MISSING = "???"  # what a mandatory value that nobody gave looks like in YAML
UNDECIDING = ("logger", "launcher", "sweeper", "sweep")  # groups and sections that no result depends on
FILES_GROUPS = ("experiment", "row")  # groups of YAML files without a spec: they set other groups' keys


@dataclass(frozen=True)
class Settings:
    """A run's settings; one spec for each group and section."""

    seed: int
    plots: bool | None
    row: str | None
    model: models.ModelSpec
    dataset: datasets.DatasetSpec
    freeze: freeze.FreezePolicy
    augmentation: augment.AugmentationSpec
    hardware: hardware.HardwareSpec
    task: tasks.TaskSpec
    head: heads.HeadSpec
    loss: losses.LossSpec
    optimizer: optim.OptimizerSpec
    schedule: schedules.Schedule
    logger: dict[str, loggers.LoggerSpec]
    launcher: launchers.LauncherSpec
    sweeper: sweepers.SweeperSpec
    data: DataSpec
    trainer: TrainerSpec
    cache: CacheSpec
    evaluate: EvaluateSpec
    sweep: SweepSpec

    @property
    def batch(self) -> Batch:
        return divide(self.data.batch_size, self.hardware)

    @property
    def size(self) -> int:
        """Side of the pictures that the net sees, px; 0: it sees none."""
        if self.dataset.size is None:
            return 0
        return max(self.dataset.size, self.model.least()) if self.data.size == "auto" else self.data.size

    @property
    def monitor(self) -> str:
        """The metric that decides which epoch is the best."""
        return f"val/{self.task.METRICS[0]}" if self.trainer.monitor == "auto" else self.trainer.monitor

    @property
    def origin(self) -> weights.Origin:
        """Where the weights come from. Raises UserError for a word that means nothing here."""
        published, path = self.model.published(), Path(self.model.weights).expanduser()
        return _origin(self.model.weights, published.identity if published else None, path.stat().st_mtime_ns if path.exists() else None)

    def specs(self) -> Iterator[tuple[str, Spec]]:
        """Each spec with the key of its section."""
        for key in (*GROUPS, *SECTIONS):
            value = getattr(self, key)
            if isinstance(value, dict):
                yield from ((f"{key}.{name}", each) for name, each in value.items())
            elif value is not None:
                yield key, value

    def fits(self, data: Mapping[str, Any]) -> list[Problem]:
        """What is wrong between these settings and a set of this `kind`, these `sizes` and `classes`."""
        found, sizes = [], data["sizes"]
        if data["kind"] != self.task.KIND:
            fitting = [name for name, spec in tasks.GROUP.builtin.items() if getattr(spec, "KIND", "") == data["kind"]]
            found.append(Problem("task", self.task.name, f"dataset={self.dataset.name} has {data['kind']}; task={fitting[0]} learns them"))
        found += [problem._replace(key=f"model.{problem.key}") for problem in self.model.unfit(data["kind"])]
        found += self._enters(data["input"]["kind"], data["kind"])
        found += [problem._replace(key=f"dataset.{problem.key}") for problem in self.dataset.unfit(data["kind"])]
        if (self.trainer.trains or self.head.fits) and not sizes["train"]:
            found.append(Problem("dataset", self.dataset.name, "there is no train picture"))
        chooses = self.trainer.keep == "best" or self.trainer.patience is not None
        if self.trainer.trains and not self.head.fits and not sizes["val"] and chooses:
            remedy = "the set has no val pictures to choose by: give it some, or set trainer.keep=last trainer.patience=null"
            found.append(Problem("trainer.keep", self.trainer.keep, remedy))
        weighted = getattr(self.loss, "class_weights", None)
        if isinstance(weighted, list) and len(weighted) != len(data["classes"]):
            remedy = f"the set has {len(data['classes'])} classes; give a weight for each, in their order, or balanced"
            found.append(Problem("loss.class_weights", weighted, remedy))
        return found

    def _enters(self, enters: str, kind: str) -> list[Problem]:
        """What is wrong between these settings and what enters the net."""
        found, name = [], self.dataset.name
        if enters not in self.model.takes:
            fitting = [each for each, spec in models.GROUP.builtin.items() if enters in getattr(spec, "takes", ())]
            what = "pictures" if enters == "pictures" else f"samples that are no pictures ({enters})"
            found.append(Problem("model", self.model.name, f"dataset={name} has {what}; model={'|'.join(fitting)} takes them"))
        if (enters != "pictures" or kind == "boxes") and self.augmentation.name != "none":
            why = "boxes would stay where they were" if enters == "pictures" else "augmentations are made for pictures"
            found.append(Problem("augmentation", self.augmentation.name, f"{why}; none works"))
        if kind == "boxes" and self.data.fit != "squash":
            remedy = "boxes are parts of a picture's width and height; squash keeps them where they are"
            found.append(Problem("data.fit", self.data.fit, remedy))
        return found

    def run_id(self, data: str, weights: str) -> str:
        """The hash of what decides the result: the settings, the data's fingerprint and the identity of the weights."""
        deciding: dict[str, Any] = {key: spec.deciding() for key, spec in self.specs() if key.split(".")[0] not in UNDECIDING}
        deciding["data"]["size"] = self.size  # auto or written out, it is the same run
        deciding["trainer"]["monitor"] = self.monitor
        if self.trainer.max_steps is not None:
            del deciding["trainer"]["max_epochs"]
        return digest(self.seed, deciding, data, weights)[:12]


def settings(config: Mapping[str, Any]) -> Settings:
    """A resolved config as specs. Builds nothing and looks at no file. Raises UserError with every mistake in it."""
    whole, problems = _parsed(config)
    if problems:
        raise UserError(problems)
    return whole


def checked(config: Mapping[str, Any]) -> Settings:
    """As `settings`, and it can run here: files and GPUs are there, numbers fit each other. Raises UserError with every mistake."""
    whole, problems = _parsed(config)
    remote = whole.launcher is not None and whole.launcher.remote
    for at, spec in whole.specs():
        # the machine of a run that goes elsewhere is asked there, by its worker
        found = [*spec.wrong(), *spec.unsaid()] if remote and isinstance(spec, hardware.HardwareSpec) else spec.problems()
        problems += [problem._replace(key=f"{at}.{problem.key}") for problem in found]
    wrong = {problem.key.split(".")[0] for problem in problems}
    for sections, rule in RULES.items():
        if wrong.isdisjoint(sections):
            _collect(problems, rule, whole)
    if problems:
        raise UserError(problems)
    return whole


def _parsed(config: Mapping[str, Any]) -> tuple[Settings, list[Problem]]:
    """The settings, None where a section has a mistake, and the mistakes."""
    config = {**config, **{key: {**_later(key, given), **given} for key in LATER if isinstance(given := config.get(key, {}), Mapping)}}
    problems = [_stranger(key, value) for key, value in config.items() if key not in (*GROUPS, *SECTIONS, *PLAIN)]
    built: dict[str, Any] = {}
    for key, group in GROUPS.items():
        section = config.get(key)
        if key == "logger":
            named = section.items() if isinstance(section, Mapping) else ()
            entries = {name: _collect(problems, _entry, group, values, f"{key}.{name}") for name, values in named}
            built[key] = {name: entry for name, entry in entries.items() if entry}
        else:
            built[key] = _collect(problems, _entry, group, section, key)
    for key, spec in SECTIONS.items():
        section = config.get(key)
        built[key] = _collect(problems, _section, spec, section, key)
    seed, plots, row = (config.get(key) for key in PLAIN)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        problems.append(Problem("seed", shown(seed), "a whole number of at least 0 is needed"))
    if plots is not None and not isinstance(plots, bool):
        problems.append(Problem("plots", plots, "true, false or null is needed (null: pictures for single runs, none in a sweep)"))
    if row is not None and not isinstance(row, str):
        problems.append(Problem("row", shown(row), "a name is needed, as a file of the group row gives it; null: none"))
    return Settings(seed=seed, plots=plots, row=row, **built), problems  # type: ignore[arg-type]


def _later(section: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of LATER for a section; of a group, those that the chosen entry has."""
    values, group = LATER[section], GROUPS.get(section)
    if group is None or given.get("name") not in group.names():
        return values
    with suppress(UserError):  # it does not load, which is told where it is parsed
        return {key: value for key, value in values.items() if key in group.spec(given["name"]).model_fields}
    return values


def _entry(group: Group, values: Any, at: str) -> Spec:
    """One group's chosen entry as its spec."""
    if not isinstance(values, Mapping) or "name" not in values:
        raise UserError(Problem(at, None, f"choose one: {group.name}={'|'.join(group.names())}"))
    return _section(group.spec(values["name"]), values, at)


def _section(spec: type[Spec], values: Any, at: str) -> Spec:
    if not isinstance(values, Mapping):
        raise UserError(Problem(at, values, f"a section is needed, with {', '.join(spec.model_fields)}"))
    return parse(spec, {key: value for key, value in values.items() if value != MISSING}, at)


def _collect(problems: list[Problem], make: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return make(*arguments)
    except UserError as error:
        problems += error.problems
        return None


def _epochs(whole: Settings) -> None:
    epochs = whole.trainer.max_epochs
    if not epochs and whole.trainer.max_steps is not None:
        remedy = "trainer.max_epochs=0 means no training; leave one of them out"
        raise UserError(Problem("trainer.max_steps", whole.trainer.max_steps, remedy))
    if whole.trainer.max_steps is not None and whole.freeze.alone and whole.dataset and whole.dataset.labelled is not None:
        remedy = f"epochs of freeze={whole.freeze.name} with and without labels have not the same number of steps; give trainer.max_epochs"
        raise UserError(Problem("trainer.max_steps", whole.trainer.max_steps, remedy))
    if whole.trainer.max_steps is None and epochs and (problem := whole.freeze.epochs_problem(epochs)):
        raise UserError(problem)


def _cacheable(whole: Settings) -> None:
    augmentation, views = whole.augmentation, whole.cache.views
    name, random = augmentation.name, augmentation.finite() is None
    if views is not None and augmentation.mixes:
        remedy = f"augmentation={name} mixes each picture with another one in every batch, which can't be drawn before; null works"
        raise UserError(Problem("cache.views", views, remedy))
    if views is not None and not random:
        remedy = f"augmentation={name} is not random: its views are enumerated, and none is drawn; null works"
        raise UserError(Problem("cache.views", views, remedy))
    if whole.cache.mode == "require" and random and views is None:
        why = "mixes pictures, and" if augmentation.mixes else "is random, and"
        remedy = "auto works" if augmentation.mixes else "auto works, and so does cache.views=8: as many pre-drawn views"
        raise UserError(Problem("cache.mode", "require", f"augmentation={name} {why} runs live; {remedy}"))


def _averaged(whole: Settings) -> None:
    if whole.evaluate.views and whole.augmentation.finite() is None and whole.cache.views is None:
        remedy = f"augmentation={whole.augmentation.name} is random, and so has no views to average over; "
        remedy += "false works" if whole.augmentation.mixes else "false works, or cache.views=8: as many pre-drawn ones"
        raise UserError(Problem("evaluate.views", True, remedy))


def _large_enough(whole: Settings) -> None:
    if whole.size and (problem := whole.model.too_small(whole.size)):
        raise UserError(problem)


def _measured(whole: Settings) -> None:
    task = whole.task
    known = [f"val/{name}" for name in (*task.METRICS, "loss")]
    if whole.monitor not in known:
        hint = nearest(whole.monitor, known) or f"task={task.name} measures {', '.join(known)}"
        raise UserError(Problem("trainer.monitor", whole.trainer.monitor, hint))
    kinds = getattr(whole.loss, "kinds", ("class",))
    if task.KIND not in kinds:
        fitting = [name for name, spec in losses.GROUP.builtin.items() if task.KIND in getattr(spec, "kinds", ()) and name != "own"]
        fitting = fitting or ["own"]
        raise UserError(Problem("loss", whole.loss.name, f"task={task.name} learns {task.KIND}; loss={'|'.join(fitting)} would work"))


def _mixed(whole: Settings) -> None:
    if whole.task.KIND == "numbers" and whole.augmentation.mixes:
        raise UserError(Problem("augmentation", whole.augmentation.name, "numbers are not mixed; leave mixup and cutmix to labels"))


def _classifier(whole: Settings) -> None:
    if whole.head.pretrained and whole.model.weights == "none":
        remedy = f"head={whole.head.name} keeps the classifier that the weights bring; model.weights=imagenet, or a weights file, has one"
        raise UserError(Problem("model.weights", "none", remedy))


def _solved(whole: Settings) -> None:
    """A head that needs no epochs is solved once, on what a frozen backbone gives."""
    head, found = whole.head, []
    if not head.fits:
        return
    if not isinstance(whole.freeze, freeze.BackboneFrozen):
        found.append(
            Problem("freeze", whole.freeze.name, f"head={head.name} needs no epochs, and nothing below it trains; freeze=backbone works")
        )
    if whole.hardware.count() > 1:
        found.append(Problem("hardware.devices", whole.hardware.count(), f"head={head.name} is solved on one device; 1 works"))
    if found:
        raise UserError(found)


def _solitary(whole: Settings) -> None:
    if whole.freeze.alone and not whole.model.alone:
        fitting = [name for name, spec in models.GROUP.builtin.items() if getattr(spec, "alone", False)]
        remedy = f"it trains each stage by a loss of its own; those of model={whole.model.name} have none, model={'|'.join(fitting)} has"
        raise UserError(Problem("freeze", whole.freeze.name, remedy))


def _learnable(whole: Settings) -> None:
    head, kind = whole.head, whole.task.KIND
    if head.learns != (whole.loss.name == "own"):
        remedy = "it has a loss of its own; loss=own works" if head.learns else "it has none of its own; loss=cross_entropy|mse would work"
        raise UserError(Problem("loss", whole.loss.name, f"head={head.name}: {remedy}"))
    if kind not in head.kinds:
        fitting = [name for name, spec in heads.GROUP.builtin.items() if kind in getattr(spec, "kinds", ())]
        raise UserError(Problem("head", head.name, f"task={whole.task.name} learns {kind}; head={'|'.join(fitting)} would work"))


@cache  # a file of weights is read for its hash: once for all points of a sweep
def _origin(given: str, published: str | None, changed: int | None) -> weights.Origin:
    return weights.origin(given, published)


RULES: dict[tuple[str, ...], Callable[[Settings], object]] = {  # what no spec sees alone, and the sections that must be right for it
    ("model",): lambda whole: whole.origin,
    ("data", "hardware"): lambda whole: whole.batch,
    ("data", "dataset", "model"): _large_enough,
    ("freeze", "trainer"): _epochs,
    ("cache", "augmentation"): _cacheable,
    ("cache", "augmentation", "evaluate"): _averaged,
    ("task", "trainer", "loss"): _measured,
    ("task", "augmentation"): _mixed,
    ("head", "model"): _classifier,
    ("head", "freeze", "hardware"): _solved,
    ("head", "task", "loss"): _learnable,
    ("freeze", "model"): _solitary,
    ("launcher", "hardware", "sweeper", "dataset", "model"): lambda whole: whole.launcher.reaches(
        whole.hardware, whole.sweeper.name, {"dataset": whole.dataset, "model": whole.model}
    ),
}


def _stranger(key: str, value: object) -> Problem:
    known = [*GROUPS, *FILES_GROUPS, *SECTIONS, *PLAIN]
    return Problem(
        key, None if isinstance(value, Mapping) else shown(value), f"no such key; {nearest(key, known) or 'there are ' + ', '.join(known)}"
    )


def paths(config: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """The keys of a composed config that hold a path, or a list of them: (section, key, the words that are none)."""
    for section, values in config.items():
        spec = SECTIONS.get(section)
        if section in GROUPS and isinstance(values, Mapping) and values.get("name") in GROUPS[section].names():
            spec = GROUPS[section].spec(values["name"])
        for key, words in registry.paths(spec).items() if spec and isinstance(values, Mapping) else ():
            if isinstance(values.get(key), str | list):
                yield section, key, words


__all__ = ["GROUPS", "SECTIONS", "Settings", "checked", "paths", "settings"]
