"""One run's settings, typed: plain config in, specs out, every mistake at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from regraft import augment, datasets, freeze, hardware, heads, launchers, loggers, losses, models, optim, schedules, tasks
from regraft.cache import CacheSpec
from regraft.errors import Problem, UserError, nearest
from regraft.files import digest
from regraft.hardware import Batch, divide
from regraft.registry import Group, Spec, decides, doc, parse


class DataSpec(Spec):
    """The config section `data`: how pictures become batches."""

    batch_size: int = doc("pictures of a global batch, whatever the number of devices", ge=1)
    size: int | Literal["auto"] = doc("side of the square pictures that the net sees, px; auto: the dataset's own")
    fit: Literal["crop", "squash", "pad"] = doc("how a picture becomes square: crop its middle, squash it, pad it with white")


class TrainerSpec(Spec):
    """The config section `trainer`: how long, and which epoch is kept."""

    max_epochs: int = doc("epochs over all phases together", ge=1)
    keep: Literal["best", "last"] = doc("which epoch's weights are tested and saved; best: by trainer.monitor")
    monitor: Literal["val/accuracy", "val/loss"] = doc("what decides which epoch is the best")
    patience: int | None = doc("a phase ends after so many epochs without a better trainer.monitor; null: never", ge=1)
    checkpoint_seconds: float = doc("least seconds between two checkpoints; 0: one after each epoch", ge=0, decides=False)


class SweepSpec(Spec):
    """The config section `sweep`: many runs of one command."""

    name: str = doc("the sweep's name, and its folder under multirun/", decides=False)
    on_error: Literal["continue", "stop"] = doc("what happens to the runs that are left when one fails", decides=False)


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
    )
}
SECTIONS: dict[str, type[Spec]] = {"data": DataSpec, "trainer": TrainerSpec, "cache": CacheSpec, "sweep": SweepSpec}
PLAIN = ("seed", "plots")
UNDECIDING = ("logger", "launcher", "sweep")  # groups and sections that no result depends on
FILES_GROUPS = ("experiment",)  # groups of YAML files without a spec: they set other groups' keys


@dataclass(frozen=True)
class Settings:
    """A run's settings; one spec for each group and section."""

    seed: int
    plots: bool | None
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
    data: DataSpec
    trainer: TrainerSpec
    cache: CacheSpec
    sweep: SweepSpec

    @property
    def batch(self) -> Batch:
        return divide(self.data.batch_size, self.hardware)

    @property
    def size(self) -> int:
        """Side of the pictures that the net sees, px."""
        return self.dataset.size if self.data.size == "auto" else self.data.size

    def specs(self) -> Iterator[tuple[str, Spec]]:
        """Each spec with the key of its section."""
        for key in (*GROUPS, *SECTIONS):
            value = getattr(self, key)
            if isinstance(value, dict):
                yield from ((f"{key}.{name}", each) for name, each in value.items())
            else:
                yield key, value

    def run_id(self, data: str, weights: str) -> str:
        """The hash of what decides the result: the settings, the data's fingerprint and the identity of the weights."""
        deciding = {key: spec.deciding() for key, spec in self.specs() if key.split(".")[0] not in UNDECIDING}
        return digest(self.seed, deciding, data, weights)[:12]


def settings(config: Mapping[str, Any]) -> Settings:
    """A resolved config as specs. Builds nothing. Raises UserError with every mistake in it."""
    problems = [Problem(key, None, _unknown(key)) for key in config if key not in (*GROUPS, *SECTIONS, *PLAIN)]
    built: dict[str, Any] = {}
    for key, group in GROUPS.items():
        section = config.get(key)
        if key == "logger":
            built[key] = {}
            for name, values in (section if isinstance(section, Mapping) else {}).items():
                built[key][name] = _collect(problems, _entry, group, values, f"{key}.{name}")
        else:
            built[key] = _collect(problems, _entry, group, section, key)
    for key, spec in SECTIONS.items():
        section = config.get(key)
        if not isinstance(section, Mapping):
            problems.append(Problem(key, section, f"a section is needed, with {', '.join(spec.model_fields)}"))
        else:
            built[key] = _collect(problems, parse, spec, section, key)
    seed, plots = config.get("seed"), config.get("plots")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        problems.append(Problem("seed", seed, "a whole number of at least 0 is needed"))
    if plots is not None and not isinstance(plots, bool):
        problems.append(Problem("plots", plots, "true, false, or null: for single runs and not in a sweep"))
    if problems:
        raise UserError(problems)
    whole = Settings(seed=seed, plots=plots, **built)  # type: ignore[arg-type]
    _rules(whole)
    return whole


def _entry(group: Group, values: Any, at: str) -> Spec:
    """One group's chosen entry as its spec."""
    if not isinstance(values, Mapping) or "name" not in values:
        raise UserError(Problem(at, values, f"choose one: {group.name}={'|'.join(group.names())}"))
    return parse(group.spec(values["name"]), values, at)


def _collect(problems: list[Problem], make: Any, *arguments: Any) -> Any:
    try:
        return make(*arguments)
    except UserError as error:
        problems += error.problems
        return None


def _rules(whole: Settings) -> None:
    """What no spec can see alone."""
    problems = [problem._replace(key=f"{at}.{problem.key}") for at, spec in whole.specs() for problem in spec.problems()]
    _collect(problems, lambda: whole.batch)
    least = whole.freeze.least_epochs()
    if whole.trainer.max_epochs < least:
        problems.append(Problem("trainer.max_epochs", whole.trainer.max_epochs, f"freeze={whole.freeze.name} needs at least {least}"))
    if whole.cache.mode == "require" and whole.augmentation.finite() is None:
        problems.append(Problem("cache.mode", "require", f"augmentation={whole.augmentation.name} is random and runs live; auto works"))
    if problems:
        raise UserError(problems)


def _unknown(key: str) -> str:
    known = [*GROUPS, *SECTIONS, *PLAIN]
    return f"no such key; {nearest(key, known) or 'there are ' + ', '.join(known)}"


def paths(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The keys of a composed config that hold a path: (section, key)."""
    for section, values in config.items():
        spec = SECTIONS.get(section)
        if section in GROUPS and isinstance(values, Mapping) and values.get("name") in GROUPS[section].names():
            spec = GROUPS[section].spec(values["name"])
        for key, field in spec.model_fields.items() if spec and isinstance(values, Mapping) else ():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("path") and isinstance(values.get(key), str):
                yield section, key


__all__ = ["GROUPS", "SECTIONS", "Settings", "decides", "paths", "settings"]
