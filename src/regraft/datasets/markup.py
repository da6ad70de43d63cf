"""Small xml files from others, read without entities: elements with the lines on which they begin."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

from regraft.errors import Problem, UserError

DEEPEST = 20  # elements inside each other


class Element(NamedTuple):
    """An xml element, with the line on which it begins."""

    name: str
    line: int
    parts: list[Element]
    words: list[str]

    def all(self, name: str) -> list[Element]:
        return [part for part in self.parts if part.name == name]

    def text(self, *path: str) -> str:
        """The words inside the first element on a path; empty where there is none."""
        here: Element | None = self
        for name in path:
            here = next(iter(here.all(name)), None) if here else None
        return "".join(here.words).strip() if here else ""


def elements(data: bytes, path: Path) -> Element:
    """Raises UserError (file and line) for what is no sound xml, for a document type, which may hold entities, and for deep nesting."""
    root = Element("", 0, [], [])
    open_ = [root]
    parser = expat.ParserCreate()

    def begin(name: str, attributes: dict[str, str]) -> None:
        if len(open_) > DEEPEST:
            raise UserError(Problem(f"{path}:{parser.CurrentLineNumber}", name, f"more than {DEEPEST} elements inside each other"))
        element = Element(name, parser.CurrentLineNumber, [], [])
        open_[-1].parts.append(element)
        open_.append(element)

    def refuse(*_: object) -> None:
        remedy = "a document type is not read, for its entities may grow without end; remove it"
        raise UserError(Problem(f"{path}:{parser.CurrentLineNumber}", "<!DOCTYPE", remedy))

    parser.StartElementHandler = begin
    parser.EndElementHandler = lambda name: open_.pop()
    parser.CharacterDataHandler = lambda words: open_[-1].words.append(words)
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise UserError(Problem(f"{path}:{error.lineno}", None, f"is no sound xml ({expat.ErrorString(error.code)})")) from None
    return root.parts[0]
