"""What `regraft cache` shows of a cache folder and does to it: stores are listed, pruned and verified; no torch, nothing is trusted."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from regraft.cache import ABOUT, LOCK, default_folder
from regraft.errors import Problem, UserError
from regraft.eviction import FOLDER, GONE, USED, claim, evict, in_use, last_used, size, stores_in
from regraft.files import digest
from regraft.locks import Lock
from regraft.segments import BUILDING, DAMAGED, KEY, KEYS, PUBLISHED, Damaged, listed, read, set_aside, sweep
from regraft.views import Drawn, View

LONGEST = 2**20  # bytes of a store's description; more was not written by regraft
WIDEST = 40  # letters of a word of it that are shown
DAY = 86400  # s


@dataclass(frozen=True)
class Shelf:
    """One store as `regraft cache list` shows it; what its description does not say is `-`."""

    key: str
    net: str
    boundary: str
    view: str
    size: str
    dtype: str
    rows: int
    bytes: int
    last_used: str  # local time; -: never
    in_use: bool


def command(action: str, dir: str | None, **options: Any) -> int:
    """`regraft cache list|prune|verify` with its options; the exit status. Raises UserError for an option of another action."""
    verbs: dict[str, tuple[Callable[..., int], list[str]]] = {
        "list": (show, ["json"]),
        "prune": (prune, ["max_gb", "unused_days", "all", "dry_run"]),
        "verify": (verify, []),
    }
    verb, names = verbs[action]
    for name, value in options.items():
        if value is not None and value is not False and name not in names:
            raise UserError(
                Problem(f"--{name.replace('_', '-')}", None, f"cache {action} does not take it; regraft cache --help shows what does")
            )
    return verb(place(dir), *(options[name] for name in names))


def place(given: str | None) -> Path:
    """The cache folder that is meant. Raises UserError for a folder that is none."""
    folder = Path(given).expanduser() if given else default_folder()
    if given and not folder.is_dir():
        raise UserError(Problem("--dir", given, "no such folder; the cache.dir of your runs is meant, and without --dir regraft's own"))
    return folder


def shelves(folder: Path) -> list[Shelf]:
    """Every store, the last used first."""
    return [_shelf(store) for store in sorted(stores_in(folder), key=last_used, reverse=True)]


def others(folder: Path) -> dict[str, int]:
    """Bytes of what else lies in the cache folder: weights, data sets, ..."""
    return {each.name: size(each) for each in listed(folder, "") if each.is_dir() and each.name != FOLDER}


def listing(folder: Path) -> dict[str, Any]:
    """All of it as plain data; sizes in bytes."""
    found, rest = [asdict(shelf) for shelf in shelves(folder)], others(folder)
    total = sum(shelf["bytes"] for shelf in found) + sum(rest.values())
    return {"folder": str(folder), "stores": found, "others": rest, "bytes": total}


def show(folder: Path, as_json: bool) -> int:
    """Prints what `listing` finds, for people or as JSON."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = listing(folder)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    if found["stores"]:
        shown = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("store", "net", "below", "view", "px", "dtype", "rows", "MB", "last used", ""):
            shown.add_column(name, justify="right" if name in ("px", "rows", "MB") else "left", overflow="fold")
        for each in (Shelf(**one) for one in found["stores"]):
            words = (each.key[:8], each.net, each.boundary, each.view, each.size, each.dtype, f"{each.rows:,}", _mb(each.bytes))
            shown.add_row(*map(Text, (*words, each.last_used, "in use" if each.in_use else "")))
        Console(highlight=False, width=max(Console().width, 120)).print(shown)  # a narrow terminal wraps lines; figures stay whole
    else:
        print("no activations are stored")
    for name, count in found["others"].items():
        print(f"{_word(name)}: {_mb(count)} MB")
    print(f"{found['folder']}: {_mb(found['bytes'])} MB in all")
    return 0


def prune(
    folder: Path, max_gb: float | None, unused_days: float | None, everything: bool, dry: bool, say: Callable[[str], None] = print
) -> int:
    """Removes stores, the longest unused first and never one in use: until `max_gb` are left, those unused for so many days, or all.

    Nothing but activations: the folder's weights/ hold what run folders need to be opened. Exit status 1 where what is in use leaves more
    than was asked for. Raises UserError unless exactly one is asked for.
    """
    asked = {"--max-gb": max_gb, "--unused-days": unused_days, "--all": everything or None}
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) != 1:
        raise UserError(Problem("prune", " ".join(given) or None, f"exactly one of {', '.join(asked)} is needed"))
    for name, value in given.items():
        if not 0 <= float(value) < math.inf:
            raise UserError(Problem(name, value, "a number is needed, 0 or more"))
    sizes = {store: size(store) for store in sorted(stores_in(folder), key=last_used)}
    over = sum(sizes.values()) - max_gb * 1e9 if max_gb is not None else math.inf
    before = time.time() - unused_days * DAY if unused_days is not None else math.inf
    would = "would be " if dry else ""
    removed: set[Path] = set()
    kept = False
    for store, count in sizes.items():
        if over <= 0 or last_used(store) > before:
            continue
        about = _line(_shelf(store))
        lock = None if dry else claim(store)
        if in_use(store) if dry else lock is None:
            kept = True
            say(f"{about}: kept, it is in use or not yours to remove")
            continue
        say(f"{about}: {would}removed")
        if lock:
            evict(store, lock)
        removed.add(store)
        over -= count
    freed = sum(sizes[store] for store in removed)
    left = _leftovers(folder, sizes.keys() - removed, dry)
    say(f"{_mb(freed + left)} MB {would}freed; {_mb(sum(sizes.values()) - freed - left)} MB of activations are left")
    return int(kept and over > 0)


def verify(folder: Path, say: Callable[[str], None] = print) -> int:
    """Compares every checksum; what is damaged is told and set aside, and computed again by the next run. Exit status 1 where any was."""
    damaged = whole = unread = 0
    for store in stores_in(folder):
        with ExitStack() as held:
            with suppress(OSError):
                held.enter_context(Lock(store / USED, alone=False))  # nobody removes it meanwhile
            if _description(store) is None and (store / ABOUT).exists():
                damaged += 1
                say(f"{store.name[:8]}/{ABOUT}: it is not what was written; set aside")
                set_aside(store / ABOUT)
            for path in listed(store, PUBLISHED):
                try:
                    found = read(path)
                except Damaged as error:
                    damaged += 1
                    say(f"{store.name[:8]}/{_word(path.name)}: {error}; set aside")
                    set_aside(path)
                else:
                    whole, unread = whole + (found is not None), unread + (found is None)
                    if found is None:
                        say(f"{store.name[:8]}/{_word(path.name)}: can't be read by this user")
    say(f"{whole} segments are whole, {damaged} damaged{f', {unread} could not be read' if unread else ''}")
    return int(damaged > 0)


def _shelf(store: Path) -> Shelf:
    about = _description(store) or {}
    net, transform = about.get("net"), about.get("transform")
    words = [net.get("name"), *(value for key, value in net.items() if key != "name")] if isinstance(net, dict) else [net]
    rows = 0
    for segment in listed(store, PUBLISHED):
        with suppress(OSError):
            rows += (segment / KEYS).stat().st_size // KEY
    used = last_used(store)
    return Shelf(
        key=_word(store.name),
        net=_word(" ".join(str(word) for word in words if type(word) in (str, int)) or None),
        boundary=_word(about.get("boundary")),
        view=_word(_view(about.get("view"))),
        size=_word(transform.get("size") if isinstance(transform, dict) else None),
        dtype=_word(about.get("dtype")),
        rows=rows,
        bytes=size(store),
        last_used=datetime.fromtimestamp(used).strftime("%Y-%m-%d %H:%M") if used else "-",
        in_use=in_use(store),
    )


def _view(value: Any) -> Any:
    """[turns, mirrored] or the draw of something random, in words; else the value itself."""
    match value:
        case [int() as turns, bool() as mirrored]:
            return View(turns, mirrored)
        case {"drawn": int() as number}:
            return Drawn(number)
    return value


def _description(store: Path) -> dict[str, Any] | None:
    """What a store says it holds; None where that is not what its name is the hash of."""
    with suppress(OSError, ValueError, RecursionError):
        if (store / ABOUT).is_file():
            with (store / ABOUT).open("rb") as file:
                about = json.loads(file.read(LONGEST))
            if isinstance(about, dict) and store.name == digest(about)[:32]:
                return about
    return None


def _leftovers(folder: Path, stores: Collection[Path], dry: bool) -> int:
    """Bytes of what killed processes left and of what was set aside; removed, unless `dry`."""
    left = listed(folder / FOLDER, GONE)
    with ExitStack() as held:
        for store in stores:
            with suppress(OSError):  # somebody builds it now, or it is not ours
                if parts := listed(store, BUILDING, DAMAGED):
                    held.enter_context(Lock(store / LOCK, alone=True, wait=False))
                    left += parts
        count = sum(size(each) for each in left)
        if not dry:
            sweep(left)
    return count


def _line(shelf: Shelf) -> str:
    return f"{shelf.key[:8]} {shelf.net} below {shelf.boundary}, {_mb(shelf.bytes)} MB, last used {shelf.last_used}"


def _word(value: Any) -> str:
    """A stranger's value, short and without anything that a terminal would obey."""
    text = "-" if value is None else "".join(letter if letter.isprintable() else "?" for letter in str(value)[: WIDEST + 1])
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"


def _mb(count: float) -> str:
    return f"{count / 1e6:,.1f}"
