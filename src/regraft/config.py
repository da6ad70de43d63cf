"""From overrides to checked jobs: Hydra composes the groups, the specs check every point of a grid, all mistakes are told at once.

Hydra composes once for each set of group choices; plain values are then set on a copy, and checked against the specs, so that a
grid of a thousand points costs about as much as one.
"""

from __future__ import annotations

import copy
import itertools
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from regraft.errors import Problem, UserError, either, nearest
from regraft.registry import Group
from regraft.settings import FILES_GROUPS, GROUPS, PLAIN, SECTIONS, Settings, paths, settings

Plain = dict[str, Any]
AXES = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")


@dataclass(frozen=True)
class Job:
    """One point of a sweep, or a single run: its overrides, its resolved config, and that config as specs."""

    overrides: tuple[str, ...]
    config: Plain
    settings: Settings
    hydra: Plain  # unresolved: the folders' patterns
    number: int = 0
    single: bool = True

    def folder(self, run_id: str) -> Path:
        """The run folder: hydra.run.dir, or hydra.sweep.dir and subdir, with `run_id` and the config's keys filled in."""
        hydra = copy.deepcopy(self.hydra)
        hydra["job"] = {**hydra.get("job", {}), "num": self.number, "override_dirname": ",".join(sorted(self.overrides))}
        whole = OmegaConf.create({**self.config, "run_id": run_id, "hydra": hydra})
        try:
            if self.single:
                return Path(str(whole.hydra.run.dir)).expanduser().absolute()
            return Path(str(whole.hydra.sweep.dir), str(whole.hydra.sweep.subdir)).expanduser().absolute()
        except OmegaConfBaseException as error:
            raise UserError(Problem("hydra.run.dir" if self.single else "hydra.sweep", None, str(error).splitlines()[0])) from None


class Composer:
    """Composes configs from the built-in conf/, the folders of hydra.searchpath and --config-dir, and outside packages."""

    def __init__(self, config_name: str = "config", config_dir: str | None = None) -> None:
        self.config_name, self.config_dir = config_name, config_dir
        self._composed: dict[tuple[str, ...], tuple[Plain, Plain]] = {}
        self._options: dict[str, list[str]] = {}

    def jobs(self, overrides: Sequence[str], multirun: bool) -> list[Job]:
        """Every point, composed and checked. Raises UserError with every mistake in any of them."""
        parsed = _parsed(overrides)
        structural = [override for override in parsed if _structural(override)]
        multirun = multirun or self._base(tuple(_line(o) for o in structural if not o.is_sweep_override()))[1].get("mode") == "MULTIRUN"
        points = list(_points(self._with_experiment(parsed, structural, multirun)))
        if not multirun and len(points) > 1:
            several = [_line(override) for override in parsed if override.is_sweep_override()]
            remedy = f"several values make a sweep: regraft train -m {shlex.join(overrides)}"
            raise UserError(Problem(several[0].partition("=")[0], several[0].partition("=")[2], remedy))
        problems: dict[Problem, None] = {}  # in order, each once
        jobs = []
        for number, point in enumerate(points):
            try:
                jobs.append(self._job(point, number, not multirun))
            except UserError as error:
                problems |= dict.fromkeys(error.problems)
        if problems:
            raise UserError(problems)
        return jobs

    def _job(self, point: Sequence[Override], number: int, single: bool) -> Job:
        base, hydra = self._base(tuple(_line(override) for override in point if _structural(override)))
        config = copy.deepcopy(base)
        problems = []
        for override in point:
            if not _structural(override):
                problems += _put(config, override)
        try:
            resolved = _resolved(config)
            found = _absolute(resolved)
            found["plots"] = single if found.get("plots") is None else found["plots"]
            typed = settings({key: value for key, value in found.items() if key != "run_id"})
        except UserError as error:
            told = {problem.key for problem in problems}
            raise UserError([*problems, *(problem for problem in error.problems if problem.key not in told)]) from None
        if problems:
            raise UserError(problems)
        found.pop("run_id", None)
        return Job(tuple(_line(override) for override in point), found, typed, hydra, number, single)

    def _with_experiment(self, parsed: list[Override], structural: list[Override], multirun: bool) -> list[Override]:
        """The axes that a config brings in hydra.sweeper.params, below those of the command line."""
        if not multirun:
            return parsed
        _, hydra = self._base(tuple(_line(o) for o in structural if not o.is_sweep_override()))
        given = {override.key_or_group for override in parsed}
        params = (hydra.get("sweeper") or {}).get("params") or {}
        return [*_parsed([f"{key}={value}" for key, value in params.items() if key not in given]), *parsed]

    def _base(self, overrides: tuple[str, ...]) -> tuple[Plain, Plain]:
        """The config with these group choices, and its hydra node; both plain and unresolved."""
        if overrides not in self._composed:
            self._composed[overrides] = self._compose(overrides)
        return self._composed[overrides]

    def _compose(self, overrides: tuple[str, ...]) -> tuple[Plain, Plain]:
        _register_outside()
        directory = [f"hydra.searchpath=[file://{Path(self.config_dir).expanduser().absolute()}]"] if self.config_dir else []
        if self.config_dir and not Path(self.config_dir).expanduser().is_dir():
            raise UserError(
                Problem("--config-dir", self.config_dir, "no such folder; name one that holds config groups (model/, dataset/, ...)")
            )
        GlobalHydra.instance().clear()
        try:
            with initialize_config_module("regraft.conf", version_base="1.3", job_name="regraft"):
                whole = compose(self.config_name, [*directory, *overrides], return_hydra_config=True)
        except MissingConfigException as error:
            raise UserError(_missing(error, overrides)) from None
        except (ConfigCompositionException, HydraException, OmegaConfBaseException) as error:
            raise UserError(_refused(error, overrides)) from None
        plain: Plain = OmegaConf.to_container(whole, resolve=False)  # type: ignore[assignment]
        hydra = plain.pop("hydra")
        return plain, {key: hydra[key] for key in ("run", "sweep", "sweeper", "mode", "job", "runtime") if key in hydra}


def _parsed(overrides: Iterable[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed, problems = [], []
    for line in overrides:
        try:
            parsed += parser.parse_overrides([line])
        except (OverrideParseException, HydraException):
            remedy = "not an override; write key=value, in quotes where the value holds spaces or brackets: 'key=\"a b\"'"
            problems.append(Problem(line, None, remedy))
    if problems:
        raise UserError(problems)
    return parsed


def _structural(override: Override) -> bool:
    """Whether Hydra must see it: a group's choice, a deletion, a package, or one of Hydra's own keys."""
    key = override.key_or_group
    own = key.split(".")[0] == "hydra" or key.startswith("hydra/")
    group = "." not in key and (key in GROUPS or key in FILES_GROUPS or "/" in key) and not isinstance(override.value(), dict)
    added = override.is_add() and "." not in key and key not in (*SECTIONS, *PLAIN)
    return own or group or added or override.is_delete() or override.package is not None


def _points(overrides: Sequence[Override]) -> Iterator[tuple[Override, ...]]:
    """The grid: the product of all axes, the last one fastest."""
    axes = []
    for override in overrides:
        if not override.is_sweep_override():
            axes.append([override])
        elif override.is_discrete_sweep():
            key = override.get_key_element()
            axes.append(_parsed(f"{key}={value}" for value in override.sweep_string_iterator()))
        else:
            remedy = "an interval has no points of its own; name values (0.1,0.2), or range(0,1,step=0.1)"
            raise UserError(Problem(override.key_or_group, _line(override).partition("=")[2], remedy))
    yield from itertools.product(*axes)


def _line(override: Override) -> str:
    return str(override.input_line)


def _put(config: Plain, override: Override) -> list[Problem]:
    """Set one value on the composed copy; a key that nothing reads is a problem, and `+` makes it no better."""
    key = override.key_or_group
    *sections, last = key.split(".")
    here: Any = config
    for section in sections:
        here = here.get(section) if isinstance(here, dict) else None
    given = override.get_value_element_as_str()
    if not isinstance(here, dict) or last not in here:
        if not _knows(config, key):
            return [Problem(key, given, _hint(config, key))]
        if not isinstance(here, dict):
            return [Problem(key, given, f"{'.'.join(sections)} holds no keys")]
    here[last] = _value(override)
    return []


def _value(override: Override) -> Any:
    value = override.value()
    return OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=False)["value"]  # type: ignore[index,call-overload]


def _knows(config: Plain, key: str) -> bool:
    """Whether a spec has the key, even where its YAML file does not hold it (entries of outside packages)."""
    section, _, field = key.partition(".")
    if section in SECTIONS:
        return field in SECTIONS[section].model_fields
    values = config.get(section)
    if section in GROUPS and isinstance(values, dict) and values.get("name") in GROUPS[section].names():
        return field in GROUPS[section].spec(values["name"]).model_fields
    return False


def _hint(config: Plain, key: str) -> str:
    """What the user may have meant: a near key, the same key elsewhere, another entry of the group that owns it."""
    section, _, field = key.rpartition(".")
    known = [dotted for dotted in _keys(config) if dotted != "run_id"]
    if section in GROUPS and isinstance(config.get(section), dict):
        group, chosen = GROUPS[section], str(config[section].get("name"))
        owners = [name for name in group.builtin if field in group.builtin[name].model_fields]
        own = [dotted for dotted in known if dotted.startswith(f"{section}.") and not dotted.endswith(".name")]
        near = nearest(key, own, 1)
        if owners:
            have = "has" if len(owners) == 1 else "have"
            return f"{section}={chosen} has no {field}; {either(f'{section}={name}' for name in owners)} {have}"
        elsewhere = [dotted for dotted in known if dotted.rpartition(".")[2] == field]
        if elsewhere:
            return f"no such key; did you mean {either(elsewhere)}?"
        others = sorted({f for name in group.builtin for f in group.builtin[name].model_fields})
        return "no such key; " + (near or nearest(field, others) or (f"{chosen} takes {either(own)}" if own else f"{chosen} takes no keys"))
    elsewhere = [dotted for dotted in known if dotted.rpartition(".")[2] == (field or key)]
    if elsewhere:
        return f"no such key; did you mean {either(elsewhere)}?"
    return f"no such key; {nearest(key, [*known, *GROUPS, *SECTIONS]) or 'regraft list shows the groups, regraft train --cfg job all keys'}"


def _keys(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _missing(error: MissingConfigException, overrides: Sequence[str]) -> Problem:
    """No such group, or no such entry of a group."""
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        known = [*GROUPS, *SECTIONS, *PLAIN]
        name = next((line.lstrip("+").partition("=")[0] for line in overrides if choice in line), choice)
        return Problem(
            name, choice, f"no such group or config; {nearest(name, known) or 'groups are ' + ', '.join([*GROUPS, *FILES_GROUPS])}"
        )
    options = sorted(error.options or [])
    hint = nearest(choice, options) or (f"{group} is {either(options)}" if options else f"no folder of hydra.searchpath has {group}/")
    return Problem(group, choice, f"no such {group}; {hint}")


def _refused(error: Exception, overrides: Sequence[str]) -> Problem:
    """What Hydra says, with the override that it is about."""
    words = " ".join(str(error).split("\n")[0].split())
    line = next((line for line in overrides if line.lstrip("+~").partition("=")[0].partition("@")[0] in words), None)
    key, _, value = (line or "the config").partition("=")
    name = key.lstrip("+~").partition("@")[0]
    known = [*GROUPS, *FILES_GROUPS, *SECTIONS, *PLAIN]
    near = nearest(name, known) if name not in known and not name.startswith("hydra") else ""
    return Problem(key, value or None, f"no such key or group; {near}" if near else words)


def _resolved(config: Plain) -> Plain:
    """The config with its interpolations filled in; plain data from here on."""
    if "${" not in repr(config):
        return copy.deepcopy(config)
    try:
        return OmegaConf.to_container(OmegaConf.create(config), resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "the config"
        raise UserError(Problem(key, None, str(error).splitlines()[0])) from None


def _absolute(config: Plain) -> Plain:
    """Paths as they are seen from here, so that a run folder can be read from anywhere."""
    for section, key in paths(config):
        value = config[section][key]
        path = Path(value).expanduser()
        if value != "???" and (os.sep in value or path.exists()):
            config[section][key] = str(path.absolute())
    return config


def _register_outside() -> None:
    """Entries of outside packages that bring no YAML file: the defaults of their specs become their config."""
    store = ConfigStore.instance()
    for group in GROUPS.values():
        for name in group.outside():
            spec = group.spec(name)
            values = {
                key: field.get_default(call_default_factory=True) for key, field in spec.model_fields.items() if not field.is_required()
            }
            store.store(group=group.name, name=name, node={**values, "name": name}, provider=f"entry point {group.entry_point}")


def describe(group: Group) -> Iterator[tuple[str, str, bool]]:
    """Each entry with the first line of its doc, and whether it comes from an outside package."""
    outside = set(group.outside())
    for name in group.names():
        yield name, (group.spec(name).__doc__ or "").strip().splitlines()[0], name in outside


class Plan:
    """What a job would read: its data and weights, opened once for all jobs that share them."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = list(jobs)

    @cached_property
    def sources(self) -> dict[str, Any]:
        """Data facts by dataset config: fingerprint, sizes, classes, skipped. Raises UserError with every set that can't be used."""
        found: dict[str, Any] = {}
        problems: dict[Problem, None] = {}
        for job in self.jobs:
            key = _data_key(job)
            if key in found:
                continue
            try:
                source = job.settings.dataset.open(job.settings.cache.folder())
                found[key] = {
                    "name": job.settings.dataset.name,
                    "fingerprint": source.fingerprint(),
                    "sizes": source.sizes(),
                    "classes": list(source.classes),
                    "skipped": [{"file": problem.key, "problem": problem.remedy} for problem in source.skipped],
                }
            except UserError as error:
                problems |= dict.fromkeys(error.problems)
        if problems:
            raise UserError(problems)
        return found

    def data(self, job: Job) -> Plain:
        facts: Plain = self.sources[_data_key(job)]
        return facts


def _data_key(job: Job) -> str:
    return repr(job.settings.dataset)
