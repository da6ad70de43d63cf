"""Name -> spec -> builder: how every config group finds its entries, the built-in ones and those of installed packages.

A *spec* is a small typed class (pydantic), importable without torch. It holds the types and rules of one group entry;
the YAML file of the same name holds the values. A *group* is a table of specs that outside packages extend through an entry point.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from regraft.errors import Problem, UserError, either, nearest


def doc(text: str, *, decides: bool = True, path: bool = False, **rules: Any) -> Any:
    """A spec's field: a line of doc (unit or choices), pydantic's rules (ge, lt, ...), and whether it decides the result.

    A field that does not decide the result (a number of loader workers) stays out of the run id; a path is made absolute.
    """
    return Field(description=text, json_schema_extra={"decides": decides, "path": path}, **rules)


class Spec(BaseModel):
    """What one group entry takes. Unknown keys are refused; values are not converted; a spec never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True, protected_namespaces=())

    def problems(self) -> list[Problem]:
        """Mistakes that types can't see (a missing path, an unknown class), found without torch; keys are relative to the spec."""
        return []

    def deciding(self) -> dict[str, Any]:
        """The values that decide a run's result, for its run id."""
        return {key: value for key, value in self.model_dump(mode="json").items() if decides(type(self), key)}


def decides(spec: type[Spec], key: str) -> bool:
    extra = spec.model_fields[key].json_schema_extra
    return bool(extra.get("decides", True)) if isinstance(extra, dict) else True


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
        raise UserError(_problem(spec, values, at, detail) for detail in error.errors()) from None


def _problem(spec: type[Spec], values: Mapping[str, Any], at: str, detail: Any) -> Problem:
    """One of pydantic's errors as key, value and remedy."""
    path = [str(part) for part in detail["loc"]]
    key = ".".join([at, *path] if at else path)
    field = path[0] if path else ""
    owner = str(values.get("name") or at)
    match detail["type"]:
        case "extra_forbidden":
            known = [name for name in spec.model_fields if name != "name"]
            takes = f"{owner} takes {either(known)}" if known else f"{owner} takes no keys"
            return Problem(key, detail["input"], f"no such key; {nearest(field, known) or takes}")
        case "missing":
            return Problem(key, None, f"a value is needed: {spec.model_fields[field].description}")
        case "literal_error":
            return Problem(key, detail["input"], f"{owner} has {field} {either(_choices(spec, field)) or detail['ctx']['expected']}")
        case "value_error":
            return Problem(key, detail["input"], str(detail["ctx"]["error"]))
        case _:
            about = spec.model_fields[field].description if field in spec.model_fields else ""
            return Problem(key, detail["input"], f"{detail['msg'].lower()} ({about})" if about else detail["msg"].lower())


def _choices(spec: type[Spec], field: str) -> tuple[Any, ...]:
    return get_args(spec.model_fields[field].annotation)
