"""From overrides to checked jobs: Hydra composes the groups, the specs check every point of a grid, all mistakes are told at once.

Hydra composes once for each set of group choices; plain values are then set on a copy, and checked against the specs, so that a
grid of a thousand points costs about as much as one.
"""

from __future__ import annotations

import copy
import os
import re
import shlex
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from regraft.augment import filled
from regraft.datasets.splits import labelled
from regraft.errors import Problem, UserError, shown
from regraft.mistakes import hint, keys, knows, own_files, refused, unavailable, unresolved, with_file
from regraft.overrides import SEEDS, line, parsed, points, spelt, structural, value
from regraft.settings import GROUPS, MISSING, UNDECIDING, Settings, checked, paths

if TYPE_CHECKING:
    from regraft.datasets.source import Source
    from regraft.datasets.spec import DatasetSpec

Plain = dict[str, Any]
KEY = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True)
class Job:
    """One point of a sweep, or a single run: its overrides, its resolved config, and that config as specs."""

    overrides: tuple[str, ...]
    config: Plain
    settings: Settings
    hydra: Plain  # unresolved: the folders' patterns
    number: int = 0
    single: bool = True
    trial: Plain | None = None  # of a search: what its record tells its worker of it

    def folders(self, run_id: str) -> tuple[Path | None, Path]:
        """The sweep's folder (None: a single run) and the run's: hydra.run.dir, or hydra.sweep.dir and subdir, with `run_id` and the
        config's keys filled in."""
        wanted = ("hydra.run.dir",) if self.single else ("hydra.sweep.dir", "hydra.sweep.subdir")
        patterns = {key: self.hydra[key.split(".")[1]].get(key.split(".")[2]) for key in wanted}
        plain = [_plainly(pattern, {**self.config, "run_id": run_id}) for pattern in patterns.values()]
        parts = [part for part in plain if part] if all(plain) else self._unfolded(wanted, run_id)
        return None if self.single else Path(parts[0]).expanduser().absolute(), Path(*parts).expanduser().absolute()

    def _unfolded(self, wanted: Sequence[str], run_id: str) -> list[str]:
        """The folders' patterns as OmegaConf fills them in."""
        own = sorted(line for line in self.overrides if not line.startswith("hydra"))
        hydra = {**self.hydra, "job": {**self.hydra.get("job", {}), "num": self.number, "override_dirname": ",".join(own)}}
        patterns = {key: hydra[key] for key in ("run", "sweep")}
        named = {key: value for key, value in self.config.items() if key in repr(patterns)}  # all of it would cost 10 ms for each run
        whole = OmegaConf.create({**named, "run_id": run_id, "hydra": hydra if "hydra" in repr(patterns) else patterns})
        parts = []
        for key in wanted:
            try:
                found = OmegaConf.select(whole, key, throw_on_missing=True)
            except OmegaConfBaseException as error:
                pattern = OmegaConf.to_container(whole)["hydra"][key.split(".")[1]][key.split(".")[2]]  # type: ignore[index,call-overload]
                raise UserError(Problem(key, pattern, unresolved(error, [*keys(self.config), "run_id", "hydra.job.num"]))) from None
            if found in (None, ""):
                raise UserError(Problem(key, "nothing", f"a folder is needed: {key}=multirun/${{run_id}}"))
            parts.append(str(found))
        return parts


@dataclass(frozen=True)
class Composed:
    """A config with its group choices made and its values not yet set; plain and unresolved."""

    config: Plain
    hydra: Plain
    problems: tuple[Problem, ...] = ()  # choices that could not be made; what they are about is not checked any further
    files: tuple[tuple[str, Path], ...] = ()  # the user's own YAML files in it, with the group of each


class Composer:
    """Composes configs from the built-in conf/, the folders of hydra.searchpath and --config-dir, and outside packages."""

    def __init__(self, config_name: str = "config", config_dir: str | None = None) -> None:
        self.config_name, self.config_dir = config_name, config_dir
        self._composed: dict[tuple[str, ...], Composed] = {}
        self.skipped: dict[str, str] = {}  # points that sweep.skip_invalid has left out, and why

    def jobs(self, overrides: Sequence[str], multirun: bool) -> list[Job]:
        """Every point, composed and checked. Raises UserError with every mistake in any of them; with sweep.skip_invalid a point that
        can't be is left out and noted in `skipped`, as long as some are left."""
        given, multirun = self.given(overrides, multirun)
        problems: dict[Problem, None] = {}  # in order, each once
        several = [override for override in given if override.is_sweep_override()]
        if several and not multirun:
            key, _, values = line(several[0]).partition("=")
            problems[Problem(key, values, f"several values make a sweep: regraft train -m {shlex.join(overrides)}")] = None
        for override in several if multirun else ():
            if override.key_or_group.split(".")[0] in UNDECIDING:
                key, _, values = line(override).partition("=")
                problems[Problem(key, values, "it decides no result, and so makes no runs of its own; give one value")] = None
        jobs, told, self.skipped = [], dict(problems), {}
        for number, point in enumerate(points(given)):
            try:
                jobs.append(self.job(point, number, not multirun))
            except UserError as error:
                problems |= dict.fromkeys(error.problems)
                self.skipped[shlex.join(map(line, point))] = "; ".join(map(str, error.problems))
        if self.skipped and jobs and multirun and self.alike(given).get("sweep", {}).get("skip_invalid") is True:
            problems = told
        if problems:
            raise UserError(problems)
        return jobs

    def one(self, overrides: Sequence[str]) -> Job:
        """The only point, composed and checked. Raises UserError for a sweep."""
        if (given := self.given(overrides, False))[1]:
            several = [line(each) for each in given[0] if each.is_sweep_override()]
            remedy = "these are several runs, and one is asked for here: give each key one value, and hydra.mode=RUN"
            raise UserError(Problem(" ".join(several) or shlex.join(overrides), None, remedy))
        return self.jobs(overrides, multirun=False)[0]

    def searched(self, overrides: Sequence[str], multirun: bool) -> list[Override] | None:
        """The overrides of a sweep whose sweeper searches, in Hydra's grammar; None: it is a grid, or no sweep. Raises UserError for a
        search that is asked for without -m."""
        given, multirun = self.given(overrides, multirun)
        name = (self.alike(given).get("sweeper") or {}).get("name")
        if name not in GROUPS["sweeper"].names() or not getattr(GROUPS["sweeper"].spec(name), "searches", False):
            return None
        if not multirun:
            raise UserError(Problem("sweeper", name, f"a search is a sweep: regraft train -m {shlex.join(overrides)}"))
        return given

    def alike(self, given: Sequence[Override]) -> Plain:
        """The config with what all points share; mistakes are told elsewhere."""
        shared = [override for override in given if not override.is_sweep_override()]
        config = copy.deepcopy(self._base(spelt(shared)).config)
        for override in shared:
            if not structural(override):
                _put(config, override.key_or_group, value(override))
        return config

    def given(self, overrides: Sequence[str], multirun: bool) -> tuple[list[Override], bool]:
        """The overrides in Hydra's grammar, with those of hydra.sweeper.params where they make a sweep; and whether they do."""
        given = parsed(overrides)
        hydra = self._base(spelt([override for override in given if not override.is_sweep_override()])).hydra
        multirun = multirun or hydra.get("mode") == "MULTIRUN" or any(SEEDS.match(word) for word in overrides)
        if multirun:
            params = (hydra.get("sweeper") or {}).get("params") or {}
            own = {override.key_or_group for override in given}
            given = [*(axis for axis in parsed(f"{key}={value}" for key, value in params.items()) if axis.key_or_group not in own), *given]
        return given, multirun

    def job(self, point: Sequence[Override], number: int, single: bool, trial: Plain | None = None) -> Job:
        """One point, composed and checked. Raises UserError with every mistake in it."""
        base = self._base(point)
        unsure = {problem.key for problem in base.problems}
        config, problems = copy.deepcopy(base.config), []
        for override in point:
            if not structural(override):
                problems += _put(config, override.key_or_group, value(override))
        told = {problem.key for problem in problems}
        config.pop("run_id", None)
        try:
            found = _filled(_absolute(_resolved(config)))
            found["plots"] = single if found.get("plots") is None else found["plots"]
            typed = checked(found)
        except UserError as error:
            given = {override.key_or_group for override in point if not structural(override)}
            problems += [with_file(problem, base.files, given) for problem in error.problems if problem.key not in told]
        problems = [*base.problems, *(problem for problem in problems if problem.key.split(".")[0] not in unsure)]
        if problems:
            raise UserError(problems)
        return Job(tuple(map(line, point)), found, typed, base.hydra, number, single, trial)

    def _base(self, overrides: Iterable[Override]) -> Composed:
        """The config with these overrides' group choices."""
        lines = tuple(line(override) for override in overrides if structural(override))
        if lines not in self._composed:
            self._composed[lines] = self._compose(lines)
        return self._composed[lines]

    def _compose(self, lines: Sequence[str]) -> Composed:
        if self.config_dir and not Path(self.config_dir).expanduser().is_dir():
            remedy = "no such folder; name one that holds config groups (model/, dataset/, ...)"
            raise UserError(Problem("--config-dir", self.config_dir, remedy))
        _register_outside()
        GlobalHydra.instance().clear()
        left, problems = list(lines), []
        with (
            initialize_config_module("regraft.conf", version_base="1.3", job_name="regraft"),
            warnings.catch_warnings(record=True) as heard,
        ):
            warnings.simplefilter("always")
            loader: Any = GlobalHydra.instance().config_loader()
            if self.config_dir:
                loader.get_search_path().prepend("command-line", f"file://{Path(self.config_dir).expanduser().absolute()}", "schema")
                loader.repository.initialize_sources(loader.get_search_path())
            while True:  # without a choice that can't be made the others are still looked at, so that all mistakes are told at once
                try:
                    loader._process_config_searchpath(self.config_name, parsed(left), loader.repository)  # compose looks in a copy
                    whole = compose(self.config_name, left, return_hydra_config=True)
                    break
                except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
                    problem, culprit = refused(error, left, self.config_name, loader)
                    problems.append(problem)
                    if culprit is None:
                        raise UserError(dict.fromkeys([*unavailable(heard), *problems])) from None
                    left.remove(culprit)
            files = own_files(whole.hydra.runtime.choices, self.config_name, loader)
        plain: Plain = OmegaConf.to_container(whole, resolve=False, enum_to_str=True)  # type: ignore[assignment]
        hydra = {key: value for key, value in plain.pop("hydra").items() if key in ("run", "sweep", "sweeper", "mode", "job", "runtime")}
        return Composed(plain, hydra, tuple(dict.fromkeys([*unavailable(heard), *problems])), tuple(files))


def _put(config: Plain, key: str, value: Any) -> list[Problem]:
    """Set one value on the composed copy; a key that nothing reads is a problem, and `+` makes it no better."""
    *sections, last = key.split(".")
    here: Any = config
    for section in sections:
        here = here.get(section) if isinstance(here, dict) else None
    if isinstance(value, dict) and isinstance(here, dict) and isinstance(here.get(last), dict) and not knows(config, key):
        return [problem for inside, each in value.items() for problem in _put(config, f"{key}.{inside}", each)]
    if key == "run_id":
        return [Problem(key, value, "it is filled in: the hash of what decides the result; hydra.run.dir names the folder")]
    if not isinstance(here, dict) or not (last in here or knows(config, key)):
        return [Problem(key, shown(value), hint(config, key))]
    here[last] = value
    return []


def _plainly(pattern: Any, config: Plain) -> str | None:
    """The pattern with its keys' words and whole numbers filled in; None: there is more to it, which OmegaConf must see."""
    filled = str(pattern)
    for key in KEY.findall(filled):
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if type(value) not in (str, int):
            return None
        filled = filled.replace(f"${{{key}}}", str(value))
    return None if pattern in (None, MISSING) or "$" in filled or "\\" in filled else filled


def _resolved(config: Plain) -> Plain:
    """The config with its interpolations filled in; plain data from here on."""
    if "${" not in repr(config):
        return copy.deepcopy(config)
    try:
        return OmegaConf.to_container(OmegaConf.create(config), resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", None) or "the config")
        given: Any = config
        for part in key.split("."):
            given = given.get(part) if isinstance(given, dict) else None
        raise UserError(Problem(key, given, unresolved(error, list(keys(config))))) from None


def _absolute(config: Plain) -> Plain:
    """Paths as they are seen from here, so that a run folder can be read from anywhere."""
    for section, key, words in paths(config):
        value = config[section][key]
        config[section][key] = [_from_here(each, words) for each in value] if isinstance(value, list) else _from_here(value, words)
    return config


def _from_here(value: Any, words: Sequence[str]) -> Any:
    if not isinstance(value, str) or value in (MISSING, *words):  # whatever else is called so
        return value
    path = Path(value).expanduser()
    return str(path.absolute()) if os.sep in value or path.exists() else value


def _filled(config: Plain) -> Plain:
    """The steps of an augmentation in full, so that the config in the run folder leaves nothing to another version's files."""
    augmentation = config.get("augmentation")
    if isinstance(augmentation, dict) and augmentation.get("name") == "several" and isinstance(augmentation.get("steps"), list):
        augmentation["steps"] = filled(augmentation["steps"])
    return config


def _register_outside() -> None:
    """Entries of outside packages that bring no YAML file: the defaults of their specs become their config."""
    store = ConfigStore.instance()
    for group in GROUPS.values():
        for name in group.outside():
            try:
                values = group.values(name)
            except UserError:  # a package that does not load: told where the entry is chosen, and of no concern elsewhere
                values = {}
            store.store(group=group.name, name=name, node={**values, "name": name}, provider=f"entry point {group.entry_point}")


def _unlabelled(spec: DatasetSpec, source: Source) -> Plain:
    """Of a set of which only a part has labels: how many learn the task, and how many only what needs no label."""
    known, sizes = labelled(spec, source.split("train")), source.sizes()
    return {} if known is None else {"sizes": sizes | {"train": len(known)}, "unlabelled": sizes["train"] - len(known)}


class Plan:
    """What jobs would read: their data, opened once for all jobs that share it."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = list(jobs)
        self._found: dict[str, tuple[Plain, Source] | UserError] = {}

    def data(self, job: Job) -> tuple[Plain, Source]:
        """Facts of a job's data (fingerprint, sizes, classes, skipped), and its pictures. Raises UserError for a set that can't be used."""
        key = repr(job.settings.dataset)
        if key not in self._found:
            try:
                source = job.settings.dataset.opened(job.settings.cache.folder())
                facts = {
                    "name": job.settings.dataset.name,
                    "fingerprint": source.fingerprint(),
                    **source.facts(),
                    **_unlabelled(job.settings.dataset, source),
                    "skipped": [{"file": problem.key, "problem": problem.remedy} for problem in source.skipped],
                }
                self._found[key] = facts, source
            except UserError as error:
                self._found[key] = error
        found = self._found[key]
        if isinstance(found, UserError):
            raise found
        return found
