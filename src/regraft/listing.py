"""What `regraft list` shows: groups, their entries and keys, read from the specs and the YAML files; no Hydra, no torch."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from typing import Any

import yaml

from regraft.errors import Problem, UserError, nearest, shown
from regraft.settings import FILES_GROUPS, GROUPS

FILES_ABOUT = "overrides of your own, in experiment/NAME.yaml in a folder that --config-dir or hydra.searchpath names"


def groups() -> Iterator[str]:
    """One line a group: its name, what it is about, its entries."""
    width = max(map(len, GROUPS))
    for name, group in GROUPS.items():
        yield f"{name:<{width}}  {group.about}"
        yield f"{'':<{width}}    {', '.join(group.names())}"
    yield f"{FILES_GROUPS[0]:<{width}}  {FILES_ABOUT}"
    yield ""
    yield "regraft list GROUP shows the keys of its entries."


def entries(name: str) -> Iterator[str]:
    """One group's entries with their keys: the value in its YAML file, and the key's unit or choices. Raises UserError for no group."""
    if name in FILES_GROUPS:
        yield f"{name}=NAME  {FILES_ABOUT}"
        return
    if name not in GROUPS:
        known = [*GROUPS, *FILES_GROUPS]
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
        values = _values(name, entry)
        for key, field in spec.model_fields.items():
            if key != "name":
                value = values.get(key, None if field.is_required() else field.get_default(call_default_factory=True))
                yield f"    {name}.{key} = {shown(value)}  {field.description or ''}"


def _values(group: str, entry: str) -> dict[str, Any]:
    """The values of a built-in entry's YAML file; none for an entry that has no file of its own."""
    file = resources.files("regraft.conf") / group / f"{entry}.yaml"
    if not file.is_file():
        return {}
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    return values.get(entry, values) if isinstance(values.get(entry), dict) else values
