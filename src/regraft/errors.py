"""A user's mistake: which key or file, what was given, and what would work; told without a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import NamedTuple


class Problem(NamedTuple):
    """One mistake: the config key or file it is about, what was given (None: nothing), and what would work."""

    key: str
    given: object
    remedy: str

    def __str__(self) -> str:
        given = "" if self.given is None else f" = {self.given}"
        return f"{self.key}{given}: {self.remedy}"


class UserError(Exception):
    """Raised for every mistake that a user can mend; carries one `Problem` or more and becomes exit status 2."""

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(map(str, self.problems)))


def either(choices: Iterable[object]) -> str:
    """`18, 34 or 50`: the choices as a reader would say them."""
    words = [str(choice) for choice in choices]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}" if words else "nothing"


def nearest(word: str, choices: Iterable[str], most: int = 3) -> str:
    """`did you mean depth?`, or an empty string where nothing is near."""
    near = get_close_matches(word, list(choices), n=most, cutoff=0.6)
    return f"did you mean {either(near)}?" if near else ""
