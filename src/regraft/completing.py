"""What a shell completes: verbs, options, keys and their entries, run folders. It reads names of files and the few that name keys."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import argcomplete
import yaml

from regraft.record import RECORD, PlainLoader

SIGNS = ("++", "+", "~", "")  # that Hydra has before a key
WORDS = {"model.weights": ("imagenet", "none")}  # a path would do as well
Found = dict[str, str]  # a completion -> what is said of it, in shells that show that


def script(shell: str) -> str:
    """What the shell is to run, once or in its start file."""
    return str(argcomplete.shellcode(["regraft"], shell=shell))


def answer(parser: argparse.ArgumentParser) -> None:
    """Write the completions of the line in COMP_LINE, as the shell's function expects them, and end the process."""
    line, point = os.environ.get("COMP_LINE", ""), int(os.environ.get("COMP_POINT", "0"))
    first = line.split(maxsplit=1)[1:] and line.split(maxsplit=1)[1]
    if first and "=" in first.split()[0]:  # `train` may be left out
        at = line.index(first)
        os.environ["COMP_LINE"], os.environ["COMP_POINT"] = f"{line[:at]}train {line[at:]}", str(point + len("train "))
    _teach(parser)
    argcomplete.autocomplete(parser, always_complete_options="long")


def _teach(parser: argparse.ArgumentParser) -> None:
    """Give each argument of each verb what completes it."""
    verbs = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for verb in verbs.choices.values():
        for action in verb._actions:
            how = {"overrides": overrides, "changes": changes, "group": groups, "paper": papers}.get(action.dest)
            if action.metavar in ("RUN", "RUN|DIR", "DIR"):
                how = folders
            if how:
                action.completer = how  # type: ignore[attr-defined]


def overrides(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> Found:
    """`mod` -> model=, model.depth=, ...; `model=re` -> model=resnet; `freeze=none,la` -> freeze=none,last"""
    own = getattr(parsed_args, "config_dir", None)
    sign = next(sign for sign in SIGNS if prefix.startswith(sign))
    key, equals, value = prefix.removeprefix(sign).partition("=")
    if not equals:
        given = [word for key in ("overrides", "changes") for word in getattr(parsed_args, key, ())]
        said = dict(word.lstrip("+").split("=", 1) for word in given if "=" in word)
        known = _keys(said, own)
        short = {name: told for name, told in known.items() if "." not in name} if not key else known
        return {f"{sign}{name}=": told for name, told in short.items() if name.startswith(key)}
    cut = max(value.rfind(","), value.rfind("[")) + 1
    before, begun = f"{sign}{key}={value[:cut]}", value[cut:]
    return {f"{before}{name}": told for name, told in _values(key, begun, own).items() if name.startswith(begun)}


def changes(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> Found:
    """The same, behind what they change."""
    named = getattr(parsed_args, "paper", None) or getattr(parsed_args, "run", None)
    return overrides(prefix, parsed_args) if named else {}


def groups(prefix: str, **_: Any) -> Found:
    return {name: "" for name in _groups(None) if name.startswith(prefix)}


def papers(prefix: str, **_: Any) -> Found:
    return {name: told for name, told in _entries("paper", None).items() if name.startswith(prefix)}


def folders(prefix: str, **_: Any) -> Found:
    """Run folders, and the folders on the way to them."""
    found = {}
    place, head, begun = _parted(prefix)
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith(begun) and (begun or not entry.name.startswith(".")) and entry.is_dir():
                    run = os.path.exists(f"{entry.path}/{RECORD}")
                    found[f"{head}{entry.name}{'' if run else '/'}"] = "run" if run else ""
    except OSError:
        return {}
    return found


def _keys(said: Mapping[str, str], own: str | None) -> Found:
    """Every key that an override may have, of the entries that are chosen: those of this line, else the config's own."""
    config = _read(_conf() / "config.yaml")
    chosen = {group: entry for each in config.get("defaults", []) if isinstance(each, dict) for group, entry in each.items()}
    found = dict.fromkeys(_groups(own), "")
    for group, entry in chosen.items():
        file = _files(group, own).get(str(said.get(group, entry)).strip("[]").partition(",")[0])
        found |= {f"{group}.{key}": "" for key in (_read(file) if file else ()) if key != "name"}
    found |= {"seed": "", "seeds": "runs of each, with seeds 0 to N-1", "hydra.run.dir": "", "hydra.sweep.dir": ""}
    return found | {f"{name}.{key}": "" for name, keys in config.items() if isinstance(keys, dict) and name != "hydra" for key in keys}


def _values(key: str, begun: str, own: str | None) -> Found:
    if key in _groups(own):
        return _entries(key, own)
    group, _, name = key.partition(".")
    section = _read(_conf() / "config.yaml").get(group)
    samples = [section] if isinstance(section, dict) else [_read(file) for file in _files(group, own).values()]
    if any(isinstance(each.get(name), bool) for each in samples):
        return {"true": "", "false": ""}
    words = dict.fromkeys(WORDS.get(key, ()), "")
    return words | (_paths(begun) if key in WORDS or name in ("path", "dir") else {})


def _paths(begun: str) -> Found:
    found, (place, head, _) = folders(begun), _parted(begun)
    try:
        return found | {f"{head}{file.name}": "" for file in place.iterdir() if file.is_file() and not file.name.startswith(".")}
    except OSError:
        return found


def _parted(path: str) -> tuple[Path, str, str]:
    """A path that is being typed: the folder that it leads to, as it is on the disk and as it is typed, and the name that is begun."""
    begun = "" if path.endswith("/") else Path(path).name
    return (Path(path) if path.endswith("/") else Path(path).parent).expanduser(), path[: len(path) - len(begun)], begun


def _groups(own: str | None) -> Sequence[str]:
    places = [_conf(), *([Path(own).expanduser()] if own else [])]
    return sorted({each.name for place in places if place.is_dir() for each in place.iterdir() if each.is_dir()} - {"paper", "__pycache__"})


def _entries(group: str, own: str | None) -> Found:
    """A group's entries, each with the first line of its file."""
    return {name: next(iter(_about(file)), "") for name, file in _files(group, own).items()}


def _about(file: Any) -> Iterator[str]:
    for line in file.read_text("utf-8").splitlines()[:3]:
        if line.startswith("# ") and not line.startswith("# @"):
            yield line.removeprefix("# ")


def _files(group: str, own: str | None) -> dict[str, Any]:
    places = [_conf() / group, *([Path(own).expanduser() / group] if own else [])]
    files = [file for place in places if place.is_dir() for file in place.iterdir() if file.name.endswith(".yaml")]
    return {file.name.removesuffix(".yaml"): file for file in sorted(files, key=lambda file: file.name)}


def _read(file: Any) -> dict[str, Any]:
    """The keys of a YAML file; none, where it can't be read: a shell that completes tells no errors."""
    try:
        values = yaml.load(file.read_text("utf-8"), PlainLoader)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _conf() -> Any:
    return resources.files("regraft.conf")
