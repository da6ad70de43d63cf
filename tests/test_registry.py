"""Specs and groups: all mistakes of a section at once, suggestions, and entries that installed packages bring."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from regraft import registry
from regraft.errors import Problem, UserError, either, nearest, shown
from regraft.registry import Group, Named, doc, parse


class Net(Named):
    """A net."""

    depth: Literal[18, 34] = doc("layers")
    width: int = doc("units", ge=1)
    dropout: float = doc("part that is dropped", ge=0, lt=1)
    size: Annotated[int, Field(ge=1)] | Literal["auto"] = doc("px, or auto", decides=False)
    classes: list[str] | None = doc("names")


RIGHT: dict[str, Any] = {"name": "net", "depth": 18, "width": 4, "dropout": 0.5, "size": "auto", "classes": None}


def problems(**values: Any) -> list[Problem]:
    with pytest.raises(UserError) as caught:
        parse(Net, {**RIGHT, **values}, "model")
    return caught.value.problems


def test_right_values_become_a_spec_that_never_changes() -> None:
    spec = parse(Net, RIGHT, "model")
    assert spec.model_dump() == RIGHT
    with pytest.raises(ValueError, match="frozen"):
        spec.width = 5  # type: ignore[attr-defined]


def test_all_mistakes_are_told_at_once_with_key_value_and_remedy() -> None:
    assert problems(depth=19, width="wide", dropout=1.0, size=0, classes=[1, "b"], widht=3) == [
        Problem("model.depth", 19, "net has depth 18 or 34"),
        Problem("model.width", "wide", "a whole number is needed (units)"),
        Problem("model.dropout", 1.0, "less than 1.0 is needed (part that is dropped)"),
        Problem("model.size", 0, "at least 1 or auto is needed (px, or auto)"),
        Problem("model.classes", [1, "b"], 'text is needed, in quotes that the shell leaves: \'model.classes=["1", "b"]\''),
        Problem("model.widht", 3, "no such key; did you mean model.width?"),
    ]


def test_a_misspelt_key_is_told_before_the_one_that_is_missing() -> None:
    values = {key: value for key, value in RIGHT.items() if key != "width"} | {"widht": 3}
    with pytest.raises(UserError) as caught:
        parse(Net, values, "model")
    assert [problem.key for problem in caught.value.problems] == ["model.widht", "model.width"]
    assert caught.value.problems[1] == Problem("model.width", None, "a value is needed: units")


@pytest.mark.parametrize(("key", "value"), [("width", 4.0), ("width", True), ("width", "4"), ("dropout", "0.5"), ("dropout", float("nan"))])
def test_values_are_not_converted(key: str, value: object) -> None:
    [problem] = problems(**{key: value})
    assert problem.key == f"model.{key}"


def test_a_key_that_is_like_no_other_is_told_what_there_is() -> None:
    assert problems(zzz=1) == [Problem("model.zzz", 1, "no such key; net takes depth, width, dropout, size, classes")]


def test_the_deciding_values() -> None:
    assert set(parse(Net, RIGHT, "model").deciding()) == {"name", "depth", "width", "dropout", "classes"}  # type: ignore[attr-defined]


def test_words() -> None:
    assert [either(choices) for choices in ([], ["a"], ["a", "b"], [1, 2, 3])] == ["nothing", "a", "a or b", "1, 2 or 3"]
    assert nearest("depht", ["width", "depth"]) == "did you mean depth?"
    assert nearest("depht", ["width", "depth"], at="model") == "did you mean model.depth?"
    assert nearest("zzz", ["width", "depth"]) == ""
    assert shown([None, True, {"a": 1.5}]) == "[null,true,{a:1.5}]"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Group]:
    """A group with one entry of its own and those of an installed package: `installed("name = module:Class", ...)`."""

    def install(*lines: str) -> Group:
        info = tmp_path / "outside_nets-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-nets\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("\n".join(["[regraft.tried]", *lines]))
        source = "from regraft.registry import Named\n\nclass Mine(Named):\n    'A net of mine.'\n\nNOTHING = 3\n"
        (tmp_path / "outside_nets.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        return Group("model", {"net": Net}, "regraft.tried")

    registry._entry_points.cache_clear()
    yield install
    registry._entry_points.cache_clear()
    sys.modules.pop("outside_nets", None)


def test_an_installed_package_brings_entries(installed: Callable[..., Group]) -> None:
    group = installed("mine = outside_nets:Mine", "net = outside_nets:Mine")
    assert group.names() == ["net", "mine"]
    assert group.outside() == ["mine"]
    assert group.spec("mine").__doc__ == "A net of mine."
    assert group.spec("net") is Net, "a built-in entry is not replaced"
    with pytest.raises(UserError, match="did you mean mine"):
        group.spec("mien")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("outside_nets:Missing", "does not load"),
        ("no_such_module:Mine", "No module named 'no_such_module'"),
        ("outside_nets:NOTHING", "must name a subclass of regraft.registry.Named"),
    ],
)
def test_a_package_that_is_wrong_is_named_and_only_where_it_is_chosen(value: str, told: str, installed: Callable[..., Group]) -> None:
    group = installed(f"broken = {value}", "mine = outside_nets:Mine")
    assert group.spec("mine").__name__ == "Mine"
    with pytest.raises(UserError) as caught:
        group.spec("broken")
    [problem] = caught.value.problems
    assert (problem.key, problem.given) == ("model.name", "broken")
    assert "outside-nets" in problem.remedy
    assert value in problem.remedy
    assert told in problem.remedy


def test_no_name_no_entry() -> None:
    with pytest.raises(UserError, match="no such model; model is net"):
        Group("model", {"net": Net}).spec("zzz")
