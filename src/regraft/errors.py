"""A user's mistake: which key or file, what was given, and what would work; told without a traceback."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

FULL = "OutOfMemoryError"  # the kind of error, torch's name, of a GPU whose memory was too small


class Problem(NamedTuple):
    """One mistake: the config key or file it is about, what was given (None: nothing), and what would work."""

    key: str
    given: object
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}"

    def __hash__(self) -> int:  # a list may have been given
        return hash((self.key, str(self.given), self.remedy))

    @property
    def what(self) -> str:
        """`key = value`, as the user wrote it."""
        return self.key if self.given is None else f"{self.key} = {shown(self.given)}"


class UserError(Exception):
    """Raised for every mistake that a user can mend; carries one `Problem` or more and becomes exit status 2."""

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type[UserError], tuple[list[Problem]]]:
        """So that it crosses from one process to another as it is."""
        return type(self), (self.problems,)


def facts(error: BaseException, rank: int = 0) -> dict[str, Any]:
    """What a record says of the error that ended a run."""
    if _starved(error):
        remedy = "this process may take no more memory: a smaller one, hardware.accumulate=2 (micro-batches of half the size), "
        words = str(error).strip().partition("\n")[0][:100]
        remedy += f"hardware.workers=0 or a smaller model would work ({type(error).__name__}: {words})"
        error = UserError(Problem("data.batch_size", None, remedy))
    problems = error.problems if isinstance(error, UserError) else []
    message = "\n".join(map(str, problems)) if problems else str(error)
    kind = FULL if _full(error) else type(error).__name__
    return {"kind": kind, "message": message, "problems": [list(map(str, each)) for each in problems], "rank": rank}


def killed(message: str) -> dict[str, Any]:
    """What a record says where a run's worker was ended from outside: it made no mistake, and the same command goes on with it."""
    return {"kind": "Killed", "message": message, "rank": None}


def said(told: Mapping[str, Any]) -> str:
    """A record's error as it is told: its message, and before it the kind of what is no user's mistake."""
    kind = "" if told["kind"] == "UserError" else f"{told['kind']}: "
    return f"{kind}{told['message']}"


def brief(error: BaseException) -> str:
    """The first line of what a library says."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")


def _full(error: BaseException) -> bool:
    """Whether a GPU's memory was too small: CUDA's libraries have errors of their own for it."""
    words = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return type(error).__name__ == FULL or (isinstance(error, RuntimeError) and any(each in str(error) for each in words))


def _starved(error: BaseException) -> bool:
    """Whether the machine's own memory was too small, or the part of it that a process may take."""
    words = ("can't allocate memory", "Cannot allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError | OSError) and any(each in str(error) for each in words))


def shown(value: object) -> str:
    """A value as it is written in an override: null, true, [a,b]."""
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case list() | tuple():
            return f"[{','.join(map(shown, value))}]"
        case dict():
            return f"{{{','.join(f'{key}:{shown(each)}' for key, each in value.items())}}}"
        case _:
            return str(value)


def either(choices: Iterable[object]) -> str:
    """`18, 34 or 50`: the choices as a reader would say them."""
    words = [str(choice) for choice in choices]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}" if words else "nothing"


def near(word: str, choices: Iterable[str], most: int = 3) -> list[str]:
    """The choices that a misspelt word may mean, the likeliest first."""
    return get_close_matches(word, list(choices), n=most, cutoff=0.6)


def nearest(word: str, choices: Iterable[str], most: int = 3, at: str = "") -> str:
    """`did you mean depth?`, or an empty string where nothing is near; `at`: the section that the choices are keys of."""
    found = near(word, choices, most)
    return f"did you mean {either(f'{at}.{each}' if at else each for each in found)}?" if found else ""
