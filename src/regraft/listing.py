"""What `regraft list` shows: groups, their entries and keys, read from the specs and the YAML files; no Hydra, no torch."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

import yaml

from regraft.errors import Problem, UserError, nearest, shown
from regraft.models import ModelSpec
from regraft.registry import parse
from regraft.settings import FILES_GROUPS, GROUPS, SECTIONS

FILES_ABOUT = {
    "experiment": "overrides and a sweep in one file",
    "row": "a whole recipe by one name: row=probe,fine_tune sweeps over recipes, which one table compares",
}
OWN = "of your own: {}/NAME.yaml in a folder that --config-dir or hydra.searchpath names"


def groups() -> Iterator[str]:
    """One line a group: its name, what it is about, its entries."""
    width = max(map(len, GROUPS))
    for name, group in GROUPS.items():
        yield f"{name:<{width}}  {group.about}"
        yield f"{'':<{width}}    {', '.join(group.names())}"
    for name, about in FILES_ABOUT.items():
        yield f"{name:<{width}}  {about}; {OWN.format(name)}"
        yield f"{'':<{width}}    {', '.join(_files(name))}"
    for name, section in SECTIONS.items():
        yield f"{name + '.*':<{width}}  {(section.__doc__ or '').partition(': ')[2].rstrip('.')}"
    yield ""
    yield "regraft list GROUP shows the keys of its entries."


def entries(name: str, config_dir: str | None = None) -> Iterator[str]:
    """One group's entries with their keys: the value in its YAML file, and the key's unit or choices. Raises UserError for no group.

    `config_dir`: a folder of the user's own groups, whose experiments are listed too.
    """
    name = name.removesuffix(".*")
    if name in FILES_GROUPS:
        own = sorted(Path(config_dir).expanduser().glob(f"{name}/*.yaml")) if config_dir else []
        for entry, file in [*_files(name).items(), *((file.stem, file) for file in own)]:
            lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# ") and not line.startswith("# @")]
            yield f"{name}={entry}  {lines[0].removeprefix('# ') if lines else file}"
        yield f"{name}=NAME  {FILES_ABOUT[name]}; {OWN.format(name)}"
        return
    if name in SECTIONS:
        values = yaml.safe_load((resources.files("regraft.conf") / "config.yaml").read_text(encoding="utf-8"))[name]
        for key, field in SECTIONS[name].model_fields.items():
            yield f"{name}.{key} = {shown(values.get(key))}  {field.description or ''}"
        return
    if name not in GROUPS:
        known = [*GROUPS, *FILES_GROUPS, *SECTIONS]
        raise UserError(Problem("list", name, f"no such group; {nearest(name, known) or 'there are ' + ', '.join(GROUPS)}"))
    group = GROUPS[name]
    outside = set(group.outside())
    for entry in group.names():
        try:
            spec = group.spec(entry)
        except UserError as error:  # an installed package that does not load; the other entries are listed all the same
            yield f"{name}={entry}  {error.problems[0].remedy}"
            continue
        about = (spec.__doc__ or "").strip().splitlines()[0]
        yield f"{name}={entry}  {about}{' (from an installed package)' if entry in outside else ''}"
        values = group.values(entry)
        for key, field in spec.model_fields.items():
            if key != "name":
                value = values.get(key, None if field.is_required() else field.get_default(call_default_factory=True))
                yield f"    {name}.{entry + '.' if name == 'logger' else ''}{key} = {shown(value)}  {field.description or ''}"


def _files(group: str) -> dict[str, Any]:
    """The built-in files of a group without specs, by name."""
    folder = resources.files("regraft.conf") / group
    return {file.name.removesuffix(".yaml"): file for file in sorted(folder.iterdir(), key=lambda file: file.name)}


def nets() -> Iterator[tuple[ModelSpec, str]]:
    """Every net of every family that takes pictures, without weights: one for each value of a key that has a list of them (depth); and
    that key."""
    group = GROUPS["model"]
    for name in group.names():
        try:
            spec = group.spec(name)
        except UserError:  # as above
            continue
        if "pictures" not in getattr(spec, "takes", ()):
            continue
        choices = {key: get_args(field.annotation) for key, field in spec.model_fields.items() if get_origin(field.annotation) is Literal}
        for chosen in product(*choices.values()):
            own = dict(zip(choices, chosen, strict=True)) or {
                key: value for key, value in GROUPS["model"].values(name).items() if key == "arch"
            }
            values = GROUPS["model"].values(name) | {"name": name, "weights": "none"} | own
            try:
                yield cast(ModelSpec, parse(spec, values, "model")), " ".join(f"{key}={value}" for key, value in own.items())
            except UserError:  # an outside entry with a key that has no value of its own
                continue
