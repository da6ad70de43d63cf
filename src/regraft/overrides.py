"""Overrides in Hydra's grammar: what each line says, what a choice brings along, and the points that a sweep's lines span."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import OmegaConf

from regraft.errors import Problem, UserError
from regraft.mistakes import TOP
from regraft.settings import FILES_GROUPS, GROUPS

CHOICE = re.compile(rf"^\+{{0,2}}({'|'.join((*GROUPS, *FILES_GROUPS))})(\.name)?=")
HOME = re.compile(r"=(~[^\"',\[\]{}()]*)$")
SEEDS = re.compile(r"^\+{0,2}seeds=(\d+)$")


def parsed(lines: Iterable[str]) -> list[Override]:
    """The overrides in Hydra's grammar; +model=x and model.name=x mean model=x, seeds=3 means seed=range(3), and ~/x may begin a path."""
    parser = OverridesParser.create()
    parsed, problems = [], []
    for line in lines:
        try:
            plain = HOME.sub(r'="\1"', SEEDS.sub(r"seed=range(\1)", CHOICE.sub(r"\1=", line)))
            [override] = parser.parse_overrides([plain])
            if not override.key_or_group:
                raise HydraException
            if override.key_or_group in GROUPS and override.key_or_group != "augmentation" and _nested(override):
                remedy = f"entries are chosen by their names; the keys of one are set by themselves: {override.key_or_group}.NAME.KEY=VALUE"
                problems.append(Problem(override.key_or_group, plain.partition("=")[2], remedy))
                continue
            parsed.append(override)
        except HydraException:
            remedy = "not an override; write key=value, in quotes where the value holds spaces, brackets or commas: 'key=\"a b\"'"
            problems.append(Problem(line, None, remedy))
    if problems:
        raise UserError(problems)
    return parsed


def _nested(override: Override) -> bool:
    """Whether a list holds something else than names."""
    value = None if override.is_sweep_override() else override.value()
    return isinstance(value, list) and not all(isinstance(each, str) for each in value)


def structural(override: Override) -> bool:
    """Whether Hydra must see it: a group's choice, a deletion, a package, or one of Hydra's own keys."""
    key = override.key_or_group
    if key.split(".")[0] == "hydra" or "/" in key or override.is_delete() or override.package is not None:
        return True
    added = override.is_add() and "." not in key and key not in TOP  # a group of the user's own
    return added or (key in (*GROUPS, *FILES_GROUPS) and not isinstance(override.value(), dict))


def points(overrides: Sequence[Override]) -> Iterator[tuple[Override, ...]]:
    """The grid: the product of all axes, the last one fastest. Raises UserError for a sweep that has no points of its own."""
    axes, problems = [], []
    for override in overrides:
        if not override.is_sweep_override():
            axes.append([override])
        elif override.is_discrete_sweep() and override.value_type != ValueType.GLOB_CHOICE_SWEEP:
            axes.append(parsed(f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()))
        else:
            remedy = "this names no values; write them out (0.1,0.2), or range(0,1,step=0.1); sweeper=optuna searches intervals"
            problems.append(Problem(override.key_or_group, line(override).partition("=")[2], remedy))
    if problems:
        raise UserError(problems)
    yield from (tuple(spelt(point)) for point in itertools.product(*axes))


def spelt(overrides: Iterable[Override]) -> Iterator[Override]:
    """`augmentation=[rotations,mixup]` in full: several, and its steps; the last choice counts, as of every group. `task=detect` in full:
    with the head and the loss that it can't do without, unless others are given."""
    given = list(overrides)
    own = {override.key_or_group for override in given}
    for override in given:
        if override.key_or_group in ("task", "head") and override.value() in GROUPS[override.key_or_group].builtin:
            brings = GROUPS[override.key_or_group].spec(str(override.value())).brings  # type: ignore[attr-defined]
            yield from parsed(f"{key}={value}" for key, value in brings.items() if key not in own)
    choices = [override for override in given if override.key_or_group == "augmentation"]
    for override in given:
        if override not in choices or not isinstance(override.value(), list):
            yield override
        elif override is choices[-1]:
            yield from parsed(["augmentation=several", f"augmentation.steps={line(override).partition('=')[2]}"])


def line(override: Override) -> str:
    return str(override.input_line)


def value(override: Override) -> Any:
    """The value as YAML would have it."""
    value = override.value()
    if "${" not in repr(value):
        return value  # OmegaConf's answer too, and a grid asks for many
    return OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=False)["value"]  # type: ignore[index,call-overload]
