"""Name -> spec -> builder: how every config group finds its entries, the built-in ones and those of installed packages.

A *spec* is a small typed class (pydantic), importable without torch. It holds the types and rules of one group entry;
the YAML file of the same name holds the values. A *group* is a table of specs that outside packages extend through an entry point.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import metadata, resources
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from regraft.errors import Problem, UserError, either, nearest

NEW: Any = object()  # of a field that is as old as run ids


def doc(text: str, *, decides: bool = True, path: bool = False, words: Sequence[str] = (), before: Any = NEW, **rules: Any) -> Any:
    """A spec's field: a line of doc (unit or choices), pydantic's rules (ge, lt, ...), and whether it decides the result.

    A field that does not decide the result (a number of loader workers) stays out of the run id, and so does one with the value that held
    `before` there was such a key; a path, or each of a list, is made absolute, but for `words` that are none.
    """
    extra: dict[str, Any] = {"decides": decides, "path": path, "words": list(words)}
    return Field(description=text, json_schema_extra=extra if before is NEW else {**extra, "before": before}, **rules)


class Spec(BaseModel):
    """What one group entry takes. Unknown keys are refused; values are not converted; a spec never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True, protected_namespaces=())

    def problems(self) -> list[Problem]:
        """Mistakes that types can't see (a missing path, an unknown class), found without torch; keys are relative to the spec."""
        return []

    def deciding(self) -> dict[str, Any]:
        """The values that decide a run's result, for its run id."""
        spec = type(self)
        values = self.model_dump(mode="json")
        return {key: value for key, value in values.items() if decides(spec, key) and _extra(spec, key).get("before", NEW) != value}


def _extra(spec: type[Spec], key: str) -> dict[str, Any]:
    extra = spec.model_fields[key].json_schema_extra
    return extra if isinstance(extra, dict) else {}


def decides(spec: type[Spec], key: str) -> bool:
    return bool(_extra(spec, key).get("decides", True))


def paths(spec: type[Spec]) -> dict[str, list[str]]:
    """The fields that may hold a path, or a list of them -> the words that are none there."""
    extras = {key: _extra(spec, key) for key in spec.model_fields}
    return {key: extra["words"] for key, extra in extras.items() if extra.get("path")}


class Named(Spec):
    """A spec of a group with several entries: `name` says which."""

    name: str = doc("which entry of the group this is")


class Group:
    """One config group: its built-in specs, and those of installed packages that name the entry point `regraft.<plural>`."""

    def __init__(self, name: str, builtin: Mapping[str, type[Named]], entry_point: str | None = None, about: str = "") -> None:
        self.name, self.builtin, self.entry_point, self.about = name, dict(builtin), entry_point, about

    def names(self) -> list[str]:
        return [*self.builtin, *(name for name in self._outside() if name not in self.builtin)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def outside(self) -> list[str]:
        """Entries that come from installed packages."""
        return [name for name in self._outside() if name not in self.builtin]

    def package(self, name: str) -> tuple[str, str] | None:
        """The installed package that brings an entry, and its version; None: it is built in."""
        point = None if name in self.builtin else self._outside().get(name)
        return (point.dist.name, point.dist.version) if point and point.dist else None

    def spec(self, name: str) -> type[Named]:
        """The spec class of an entry. Raises UserError for a name that nobody registered, or a package that does not load."""
        if name in self.builtin:
            return self.builtin[name]
        point = self._outside().get(name)
        if point is None:
            hint = nearest(str(name), self.names()) or f"{self.name} is {either(self.names())}"
            raise UserError(Problem(f"{self.name}.name", name, f"no such {self.name}; {hint}"))
        try:
            spec = point.load()
        except Exception as error:  # an outside package may raise anything while it is imported
            remedy = f"the entry point {point.value} of {_package(point)} does not load ({error}); reinstall or remove that package"
            raise UserError(Problem(f"{self.name}.name", name, remedy)) from error
        if not (isinstance(spec, type) and issubclass(spec, Named)):
            remedy = f"the entry point {point.value} of {_package(point)} must name a subclass of regraft.registry.Named"
            raise UserError(Problem(f"{self.name}.name", name, remedy))
        return spec

    def values(self, name: str) -> dict[str, Any]:
        """What an entry holds where nobody says otherwise: its YAML file's values; where it has none, the defaults of its spec."""
        file = resources.files("regraft.conf") / self.name / f"{name}.yaml"
        if file.is_file():
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
            return dict(values.get(name, values) if isinstance(values.get(name), dict) else values)  # loggers stand below their name
        fields = self.spec(name).model_fields.items()
        return {key: field.get_default(call_default_factory=True) for key, field in fields if not field.is_required()}

    def _outside(self) -> dict[str, metadata.EntryPoint]:
        return _entry_points(self.entry_point) if self.entry_point else {}


@cache
def _entry_points(group: str) -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=group)}


def _package(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else "an installed package"


def parse(spec: type[Spec], values: Mapping[str, Any], at: str) -> Spec:
    """The values of one config section as its spec. Raises UserError with every mistake at once; `at` is the section's key."""
    try:
        return spec.model_validate(dict(values))
    except ValidationError as error:
        details = sorted(error.errors(), key=lambda detail: detail["type"] == "missing")  # a misspelt key explains a missing one
        raise UserError(_problems(spec, values, at, details)) from None


def _problems(spec: type[Spec], values: Mapping[str, Any], at: str, details: Sequence[Any]) -> Iterator[Problem]:
    """Pydantic's errors as key, value and remedy; those of one key (elements of a list, branches of a union) are one problem."""
    owner = str(values.get("name") or at)
    fields: dict[str, list[Any]] = {}
    for detail in details:
        fields.setdefault(str(detail["loc"][0]), []).append(detail)
    for field, alike in fields.items():
        key, first = f"{at}.{field}" if at else field, alike[0]
        value = values.get(field)
        given = "null" if value is None else value
        match first["type"]:
            case "extra_forbidden":
                yield Problem(key, given, f"no such key; {_near(spec, field, at) or _takes(spec, owner)}")
            case "missing":
                yield Problem(key, None, f"a value is needed: {spec.model_fields[field].description}")
            case "literal_error" if len(alike) == 1:
                yield Problem(key, given, f"{owner} has {field} {_needed(first)}")
            case "string_type" if len(first["loc"]) < 2 or isinstance(value, list):
                quoted = json.dumps([str(each) for each in value] if isinstance(value, list) else str(value), ensure_ascii=False)
                yield Problem(key, given, f"text is needed, in quotes that the shell leaves: '{key}={quoted}'")
            case "value_error":
                yield Problem(key, given, str(first["ctx"]["error"]))
            case _:
                about = spec.model_fields[field].description
                yield Problem(key, given, f"{' or '.join(dict.fromkeys(map(_needed, alike)))} is needed ({about})")


def _near(spec: type[Spec], field: str, at: str) -> str:
    return nearest(field, [name for name in spec.model_fields if name != "name"], at=at)


def _takes(spec: type[Spec], owner: str) -> str:
    known = [name for name in spec.model_fields if name != "name"]
    return f"{owner} takes {', '.join(known)}" if known else f"{owner} takes no keys"


def _needed(detail: Any) -> str:
    """What would have been taken, in a user's words rather than in pydantic's."""
    limits = detail.get("ctx", {})
    match detail["type"]:
        case "int_type" | "int_from_float" | "int_parsing":
            return "a whole number"
        case "float_type" | "float_parsing" | "finite_number":
            return "a number"
        case "bool_type":
            return "true or false"
        case "string_type":
            return "text"
        case "list_type":
            return "a list [a,b]"
        case "greater_than_equal":
            return f"at least {limits['ge']}"
        case "greater_than":
            return f"more than {limits['gt']}"
        case "less_than_equal":
            return f"at most {limits['le']}"
        case "less_than":
            return f"less than {limits['lt']}"
        case "literal_error":
            return str(limits["expected"]).replace("'", "")
        case "too_short":
            return "at least one value" if limits["min_length"] == 1 else f"a list of {limits['min_length']} values"
        case "too_long":
            return f"at most {limits['max_length']} values"
        case "dict_type":
            return "a mapping {NAME: VALUE}"
        case _:
            return f"something else ({detail['msg'].lower()})"
