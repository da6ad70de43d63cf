"""What a mistake in an override, or in a YAML file of the user's own, was meant to be: from Hydra's words to key and remedy."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import MissingConfigException
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from regraft.errors import Problem, either, near, nearest
from regraft.settings import FILES_GROUPS, GROUPS, PLAIN, SECTIONS

Plain = dict[str, Any]
TOP = (*GROUPS, *FILES_GROUPS, *SECTIONS, *PLAIN)
HYDRA = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.sweeper.params", "hydra.searchpath", "hydra.mode")


def knows(config: Plain, key: str) -> bool:
    """Whether a spec has the key, even where its YAML file does not hold it (entries of outside packages)."""
    section, _, field = key.rpartition(".")
    return field in _fields(config, section)


def _fields(config: Plain, section: str) -> list[str]:
    """The keys that a section, or the chosen entry of a group, takes."""
    if section in SECTIONS:
        return list(SECTIONS[section].model_fields)
    here: Any = config
    for part in section.split("."):
        here = here.get(part) if isinstance(here, dict) else None
    group, name = GROUPS.get(section.split(".")[0]), here.get("name") if isinstance(here, dict) else None
    return [field for field in group.spec(name).model_fields if field != "name"] if group and name in group.names() else []


def hint(config: Plain, key: str) -> str:
    """What the user may have meant: another entry of the group, a near key of the section, the same key elsewhere."""
    section, _, field = key.rpartition(".")
    known = [dotted for dotted in keys(config) if not dotted.endswith(".name")]
    same = [dotted for dotted in known if dotted.rpartition(".")[2] == field]
    leaves = {dotted.rpartition(".")[2]: dotted for dotted in known}
    own, owners = _fields(config, section), _owners(section)
    entry = f"{section}={config[section].get('name')}" if section in GROUPS and isinstance(config.get(section), dict) else section
    if section == "logger" and field in owners:
        keyed = [f"{owner.replace('=', '.')}.{field}" for owner in owners[field]]
        return f"a logger's keys stand below its name; did you mean {either(keyed)}?"
    if entries := owners.get(field):
        return f"{entry} has no {field}; {_have(entries)}"
    if found := nearest(field, own, 1, at=section):
        return f"no such key; {found}"
    if same:
        return f"no such key; did you mean {either(same)}?"
    if like := near(field, owners, 1):
        return f"no such key; did you mean {section}.{like[0]}? {entry} has none; {_have(owners[like[0]])}"
    if section in (*GROUPS, *SECTIONS):
        return f"no such key; {entry} takes {', '.join(own) or 'no keys'}"
    if like := near(section or key, [each for each in TOP if each != section], 1):
        mended = f"{like[0]}.{field}" if section else like[0]
        return f"no such key; did you mean {mended}?" if mended in (*known, *TOP) else f"did you mean {like[0]}? {hint(config, mended)}"
    if like := near(field, leaves, 1):
        return f"no such key; did you mean {leaves[like[0]]}?"
    return "no such key; regraft list shows the groups, regraft train --cfg job all keys"


def _owners(section: str) -> dict[str, list[str]]:
    """field -> the entries of the group that have it."""
    group, _, inside = section.partition(".")
    owners: dict[str, list[str]] = {}
    for name, spec in GROUPS[group].builtin.items() if group in GROUPS else ():
        for field in spec.model_fields if inside in ("", name) else ():
            owners.setdefault(field, []).append(f"{group}={name}")
    owners.pop("name", None)
    return owners


def _have(entries: Sequence[str]) -> str:
    return f"{either(entries)} {'has' if len(entries) == 1 else 'have'} it"


def keys(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def refused(error: Exception, lines: Sequence[str], config_name: str, loader: Any) -> tuple[Problem, str | None]:
    """What Hydra could not compose as a problem, and the override that it comes from; None: from the config itself."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        file, at = Path(error.problem_mark.name), error.problem_mark.line + 1
        return Problem(str(file), None, f"line {at} is not YAML: {error.problem}"), _choosing(lines, file.parent.name, file.stem)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing(error.missing_cfg_file, lines, config_name, loader)
    words = [" ".join(line.split()) for line in f"{error}\n{error.__cause__ or ''}".splitlines() if line.strip()]
    said = next((re.sub(r"^In '[^']+': ", "", line) for line in words if not line.startswith("Error merging")), type(error).__name__)
    about = {name.rstrip(".") for name in re.split(r"['\s]+", said)}
    culprit = next((line for line in lines if line.lstrip("+~").partition("=")[0] in about or f"override {line}" in f"{error}"), None)
    if culprit is None:
        named = re.search(r"'([^']+)'", said)
        culprit, where = _bringing(lines, named[1] if named else said, loader)
        hint = f" {nearest(named[1], TOP)}" if named else ""
        key, _, given = (culprit or config_name).partition("=")
        return Problem(key, given or None, f"{said}{hint}".rstrip() + where), culprit
    key, _, given = culprit.partition("=")
    name = _key(culprit)
    if found := re.search(r"Could not override '([^@']+)@(\w+)\.", said):
        remedy = f"its file must begin with the line '# @package _global_', so that its keys are those of the whole config ({found[1]})"
    elif name in FILES_GROUPS:
        remedy = _no_choice(name, given, loader)
    elif name in TOP and "@" in key:
        remedy = f"a group has its own place here; write {name}={given}"
    elif name.startswith("hydra") and name not in HYDRA:
        remedy = f"no such key; {nearest(name, HYDRA, 1) or said}"
    elif name in TOP or name in HYDRA or culprit.startswith("~"):
        remedy = said
    else:
        remedy = f"no such key or group; {nearest(name, TOP) or f'there are {either(TOP)}'}"
    return Problem(key, given or None, remedy), culprit


def _missing(config: str, lines: Sequence[str], config_name: str, loader: Any) -> tuple[Problem, str | None]:
    """There is no such entry of a group, or no such group."""
    group, _, choice = config.rpartition("/")
    if not group and choice == config_name:
        options = [name for name in loader.get_group_options("") if not name.startswith("_")]
        return Problem("--config-name", choice, f"no such config; {nearest(choice, options) or f'{either(options)} works'}"), None
    culprit, where = _choosing(lines, group, choice) or next((line for line in lines if choice in _key(line)), None), ""
    if culprit is None:
        culprit, where = _bringing(lines, choice, loader)
    return Problem(group or choice, choice if group else None, _no_choice(group, choice, loader) + where), culprit


def _key(line: str) -> str:
    return re.split("[=@]", line.lstrip("+~"))[0]


def _bringing(lines: Iterable[str], word: str, loader: Any) -> tuple[str | None, str]:
    """The override that brings a file of the user's own in which the word stands, and where that is."""
    for line in lines:
        file = _file(line.lstrip("+").replace("=", "/", 1), loader)
        if file and word in file.read_text(encoding="utf-8"):
            return line, f" (in {file})"
    return None, ""


def _choosing(lines: Iterable[str], group: str, choice: str) -> str | None:
    """The override that chooses this entry of the group."""
    chosen = (line for line in lines if _key(line) == group)
    return next((line for line in chosen if choice in re.split(r"[\[\],=]", line)), None)


def _no_choice(group: str, choice: str, loader: Any) -> str:
    options = sorted(loader.get_group_options(group)) if group else []
    own = group.removeprefix("hydra/")
    if own != group:
        return (
            f"regraft runs its jobs itself; {own}={either(GROUPS[own].names())} works" if own in GROUPS else "regraft runs its jobs itself"
        )
    if not group:
        return f"no such group or config; {nearest(choice, TOP) or 'groups are ' + ', '.join((*GROUPS, *FILES_GROUPS))}"
    hint = nearest(choice, options) or (f"{group} is {either(options)}" if options else f"no folder of hydra.searchpath has {group}/")
    return f"no such {group}; {hint}"


def unavailable(heard: Iterable[warnings.WarningMessage]) -> Iterator[Problem]:
    """The places of hydra.searchpath that are not there, of which Hydra only warns."""
    for each in heard:
        if found := re.search(r"path=(.*) is not available", str(each.message)):
            yield Problem("hydra.searchpath", found[1], "no such folder or package; name a folder, or pkg://PACKAGE.FOLDER")


def _file(config: str, loader: Any) -> Path | None:
    """Where a config's YAML file lies; None for one of the built-in ones, or of no file."""
    for source in loader.get_sources():
        if source.is_config(config):
            if source.provider in ("main", "hydra") or source.scheme() == "structured":
                return None
            root = Path(source.path) if source.scheme() == "file" else Path(str(resources.files(source.path)))
            return root / f"{config}.yaml"
    return None


def own_files(choices: Mapping[str, Any], config_name: str, loader: Any) -> Iterator[tuple[str, Path]]:
    """The user's own YAML files in a composed config, each with its group."""
    for group, choice in {"": config_name, **choices}.items():
        for name in choice if isinstance(choice, Sequence) and not isinstance(choice, str) else [choice]:
            if name and (file := _file(f"{group}/{name}".lstrip("/"), loader)):
                yield str(group), file


def with_file(problem: Problem, files: Iterable[tuple[str, Path]], given: set[str]) -> Problem:
    """The problem with the name of the user's own file that it stands in; one of the command line as it is."""
    key = problem.key
    if any(key == each or key.startswith(f"{each}.") for each in given):
        return problem
    for group, file in files:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        held = keys(values) if isinstance(values, dict) else ()
        if group == key.split(".")[0] or any(f"{each}.".startswith(f"{key}.") or key.startswith(f"{each}.") for each in held):
            return problem._replace(remedy=f"{problem.remedy} (in {file})")
    return problem


def unresolved(error: OmegaConfBaseException, known: Sequence[str]) -> str:
    """What is wrong with an interpolation."""
    said = str(error).splitlines()[0]
    found = re.search(r"'([^']+)'", said)
    if isinstance(error, InterpolationKeyError) and found:
        leaf = found[1].rpartition(".")[2]
        same = [key for key in known if key.rpartition(".")[2] == leaf]
        hint = nearest(found[1], known) or (f"did you mean {either(same)}?" if same else "regraft train --cfg job shows all keys")
        return f"there is no key {found[1]}; {hint}"
    return f"{said}; write ${{key}} of a key that is there, as in ${{optimizer.lr}}"
