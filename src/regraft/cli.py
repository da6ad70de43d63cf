"""The verbs of the command line; each imports what it needs only when it is called."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from regraft import __version__
from regraft.errors import Problem, UserError, nearest

ABOUT = """\
Adapt trained networks to your own data: graft a head on a backbone, decide what stays frozen, sweep and compare.

  regraft train                                 ImageNet's EfficientNet-Lite0, frozen, on the embedded clipart
  regraft train model=resnet model.depth=50     any key is an override; `regraft list` shows the groups
  regraft train -m freeze=backbone,last,none    several values make a sweep, with one folder for each run
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0: all went well; 1: a run failed, or a check did not pass; 2: a mistake in what was asked for."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] not in VERBS and (_override(words[0]) or words[0] in ("-m", "--multirun")):
        words.insert(0, "train")
    try:
        parser = _parser()
        if not words:
            parser.print_help()
            return 0
        if words[0] not in VERBS and not words[0].startswith("-"):
            raise UserError(Problem(words[0], None, f"no such verb; {nearest(words[0], VERBS) or 'there are ' + ', '.join(VERBS)}"))
        options, rest = parser.parse_known_args(words)
        strange = [word for word in rest if word.startswith("-")]
        if strange:
            known = [flag for action in VERBS[words[0]][1] for flag in action[0] if flag.startswith("-")]
            hint = nearest(strange[0], known) or f"regraft {words[0]} --help shows them"
            raise UserError(Problem(strange[0], None, f"no such option of {words[0]}; {hint}"))
        if rest and "overrides" not in options:
            raise UserError(Problem(rest[0], None, f"{words[0]} takes no more than regraft {words[0]} --help shows"))
        if rest:
            options.overrides += rest
        status = int(VERBS[words[0]][0](options))
        sys.stdout.flush()  # here, where a reader that has gone is no error
        return status
    except UserError as error:
        _tell(error)
        return 2
    except KeyboardInterrupt:
        print("\nregraft: stopped; the same command goes on where this one was", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `regraft list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _train(options: argparse.Namespace) -> int:
    from rich.console import Console

    from regraft import config, dispatch, sweep
    from regraft.record import ENDED
    from regraft.report import tables

    composer = config.Composer(options.config_name, options.config_dir)
    jobs = composer.jobs(options.overrides, options.multirun)
    if options.cfg:
        _print_config(jobs[0], options.cfg)
        return 0
    console = Console(highlight=False)
    planned = sweep.plan(jobs)
    command = shlex.join(["regraft", "train", *(["-m"] if options.multirun else []), *options.overrides])
    single = jobs[0].single
    folders = dispatch.run(planned, command, lambda what: console.print(what, markup=False, soft_wrap=isinstance(what, str)), show=single)
    failed = [folder for folder in folders if folder.record["status"] not in ENDED]
    if single and not failed:
        console.print(tables.result(folders[0]))
    elif not single:
        console.print(tables.sweep(folders, _axes(planned)))
        console.print(f"runs: {_shown(Path(os.path.commonpath([folder.path for folder in folders])))}", markup=False, soft_wrap=True)
    else:
        error = folders[0].record["error"]
        kind = "" if error["kind"] == "UserError" else f"{error['kind']}: "
        print(f"regraft: the run failed: {kind}{error['message']}", file=sys.stderr)
        print(f"  more in {_shown(folders[0].path)}/log.txt; the same command tries again", file=sys.stderr)
    return 1 if failed else 0


def _axes(planned: Sequence[Any]) -> list[str]:
    """The keys in which the runs of a sweep differ, a chosen group by its name."""
    from regraft.settings import GROUPS

    flat = [_flat(each.job.config) for each in planned]
    keys = list(dict.fromkeys(key for each in flat for key in each))
    differing = [key for key in keys if len({repr(each.get(key)) for each in flat}) > 1 or (len(planned) == 1 and _swept(planned[0], key))]
    groups = {key.removesuffix(".name") for key in differing if key.endswith(".name") and key.removesuffix(".name") in GROUPS}
    return [key for key in differing if key.endswith(".name") or key.split(".")[0] not in groups or _swept(planned[0], key)]


def _swept(planned: Any, key: str) -> bool:
    return any(line.lstrip("+").partition("=")[0] == key for line in planned.job.overrides)


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _print_config(job: Any, what: str) -> None:
    import yaml

    shown = {"job": job.config, "hydra": {"hydra": job.hydra}, "all": {**job.config, "hydra": job.hydra}}[what]
    print(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), end="")


def _check(options: argparse.Namespace) -> int:
    from regraft import ahead, config, sweep

    planned = sweep.plan(config.Composer(options.config_name, options.config_dir).jobs(options.overrides, options.multirun))
    print("\n".join(ahead.lines(planned, sweep.groups(planned), sweep.ahead(planned), _shown)))
    return 0


def _preview(options: argparse.Namespace) -> int:
    from regraft import config, preview

    [job] = config.Composer(options.config_name, options.config_dir).jobs(options.overrides, multirun=False)
    source = job.settings.dataset.open(job.settings.cache.folder())
    path = Path(options.output).expanduser().absolute()
    preview.write(job.settings, source, path, options.pictures, options.draws)
    print(_shown(path))
    return 0


def _find_lr(options: argparse.Namespace) -> int:
    from regraft import config, range_test

    if options.steps < 10:
        raise UserError(Problem("--steps", options.steps, "at least 10 are needed"))
    [job] = config.Composer(options.config_name, options.config_dir).jobs(options.overrides, multirun=False)
    source = job.settings.dataset.open(job.settings.cache.folder())
    path = Path(options.output).expanduser().absolute()
    found = range_test.run(job.settings, source, path, options.steps, print)
    if found.suggestion is None:
        print(
            f"the loss falls at no rate from {found.lrs[0]:.2g} to {found.lrs[-1]:.2g}; {_shown(path)} shows it"
            if found.lrs
            else "no step was made"
        )
        return 1
    print(f"the loss falls fastest at optimizer.lr={found.suggestion:.2g}; {_shown(path)} shows {len(found.lrs)} rates")
    return 0


def _list(options: argparse.Namespace) -> int:
    from regraft import listing

    if options.cost:
        return _cost(options)
    print("\n".join(listing.groups() if options.group is None else listing.entries(options.group, options.config_dir)))
    return 0


def _cost(options: argparse.Namespace) -> int:
    from rich.console import Console

    from regraft import listing

    if options.group != "model":
        raise UserError(Problem("--cost", None, "it is the nets that cost; regraft list model --cost"))
    if options.size < 1:
        raise UserError(Problem("--size", options.size, "px of a picture's side; at least 1 is needed"))
    from regraft import cost

    with Console(stderr=True).status("measuring"):
        costs = [(spec, keys, cost.measure(spec, options.size)) for spec, keys in listing.nets()]
    Console(highlight=False, width=max(Console().width, 130)).print(cost.table(costs))  # a narrow terminal wraps lines; figures stay whole
    return 0


def _cache(options: argparse.Namespace) -> int:
    from regraft import storage

    return storage.command(**vars(options))


def _evaluate(options: argparse.Namespace) -> int:
    from regraft import load

    run = load(_run_folder(options.run))
    recorded, found = run.metrics, run.evaluate()
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        width = max(map(len, found))
        for name, value in found.items():
            print(f"{name:<{width}}  {value:.4f}  recorded {recorded.get(name, float('nan')):.4f}")
    off = [
        name
        for name, value in found.items()
        if abs(value - recorded.get(name, value)) > options.tolerance * max(1.0, abs(value))  # of errors in large units, a part
    ]
    if off:
        print(f"regraft: {', '.join(off)} differ from the record by more than {options.tolerance}", file=sys.stderr)
    return 1 if off else 0


def _predict(options: argparse.Namespace) -> int:
    from regraft import load

    run = load(_run_folder(options.run))
    files = [file for word in options.files for file in _pictures(Path(word))]
    if options.top < 1:
        raise UserError(Problem("--top", options.top, "at least 1 is needed"))
    task = run.settings.task
    top = len(run.classes) if task.KIND == "numbers" else min(options.top, len(run.classes))
    width = max(map(len, run.classes))
    for path, scores in run.predict(files):
        order = range(top) if task.KIND == "numbers" else scores.topk(top).indices.tolist()
        ranked = [(run.classes[i], round(scores[i].item(), 6)) for i in order]
        if options.json:
            said = {} if task.KIND == "numbers" else {"predicted": task.answers(scores[None], run.classes)[0]}
            print(json.dumps({"file": str(path), **said, "scores": dict(ranked)}, ensure_ascii=False))
        else:
            print(f"{path}  {'  '.join(f'{name:<{width}} {score:.3f}' for name, score in ranked)}")
    return 0


def _run_folder(word: str) -> Path:
    """Raises UserError, with the nearest name or the run folders inside, for a folder that is none."""
    path, record = Path(word).expanduser(), "record.json"
    if (path / record).is_file():
        return path
    if not path.is_dir():
        there = [str(each) for each in path.parent.iterdir() if each.is_dir()] if path.parent.is_dir() else []
        raise UserError(
            Problem("RUN", word, f"no such folder; {nearest(str(path), there) or 'name a run folder, as regraft train tells it'}")
        )
    inside = sorted(str(each.parent) for each in path.glob(f"*/{record}"))
    hint = f"it holds some: {', '.join(inside[:3])}" if inside else "name one, as regraft train tells it"
    raise UserError(Problem("RUN", word, f"not a run folder: it has no {record}; {hint}"))


def _pictures(path: Path) -> list[Path]:
    """A file as it is; a folder's pictures, at any depth. Raises UserError where there is nothing."""
    from regraft.datasets.layout import SUFFIXES

    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not found:
            raise UserError(Problem(str(path), None, "the folder holds no pictures"))
        return found
    if not path.is_file():
        raise UserError(Problem(str(path), None, "no such file or folder"))
    return [path]


def _shown(path: Path) -> str:
    """Relative to the working folder where that is inside it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _override(word: str) -> bool:
    return "=" in word or word.startswith(("+", "~"))


def _tell(error: UserError) -> None:
    count = len(error.problems)
    print(f"regraft: {count} problems" if count > 1 else "regraft: a problem", file=sys.stderr)
    for problem in error.problems:
        print(f"  {problem.what}\n      {problem.remedy}", file=sys.stderr)


_CONFIG: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (
        ("overrides",),
        {"nargs": "*", "metavar": "KEY=VALUE", "help": "overrides, as in Hydra: model=resnet model.depth=50 head.dropout=0.2"},
    ),
    (("-m", "--multirun"), {"action": "store_true", "help": "a sweep: several values of a key are several runs (head.dropout=0,0.5)"}),
    (("-cd", "--config-dir"), {"metavar": "DIR", "help": "a folder with config groups of your own"}),
    (("-cn", "--config-name"), {"metavar": "NAME", "default": "config", "help": "the config to start from (config)"}),
]
VERBS: dict[str, tuple[Any, list[tuple[tuple[str, ...], dict[str, Any]]], str]] = {
    "train": (
        _train,
        [*_CONFIG, (("-c", "--cfg"), {"choices": ["job", "hydra", "all"], "help": "print the composed config and stop"})],
        "adapt a network: a run, or a sweep with -m",
    ),
    "check": (_check, _CONFIG, "compose and check what train would run, and run nothing"),
    "preview": (
        _preview,
        [
            *(each for each in _CONFIG if "--multirun" not in each[0]),
            (("--output",), {"metavar": "FILE", "default": "preview.png", "help": "where the sheet is written (preview.png)"}),
            (("--pictures",), {"type": int, "metavar": "N", "default": 6, "help": "rows: how many train pictures (6)"}),
            (("--draws",), {"type": int, "metavar": "N", "default": 7, "help": "columns: how many epochs' draws of what is random (7)"}),
        ],
        "draw a sheet of train pictures and of what train would see of them",
    ),
    "find-lr": (
        _find_lr,
        [
            *(each for each in _CONFIG if "--multirun" not in each[0]),
            (("--output",), {"metavar": "FILE", "default": "lr.png", "help": "where the plot is written (lr.png)"}),
            (("--steps",), {"type": int, "metavar": "N", "default": 100, "help": "optimizer steps, each with a larger rate (100)"}),
        ],
        "the learning-rate range test: train some steps with a growing rate, and keep nothing",
    ),
    "list": (
        _list,
        [
            (("group",), {"nargs": "?", "help": "a config group: model, dataset, freeze, ..."}),
            (
                ("-cd", "--config-dir"),
                {"metavar": "DIR", "help": "a folder with config groups of your own: its experiments are listed too"},
            ),
            (("--cost",), {"action": "store_true", "help": "with model: parameters, multiply-adds, memory and speed here of every net"}),
            (("--size",), {"type": int, "default": 224, "metavar": "PX", "help": "side of the pictures that --cost measures with (224)"}),
        ],
        "the config groups, or one group's entries and their keys",
    ),
    "cache": (
        _cache,
        [
            (
                ("action",),
                {"choices": ["list", "prune", "verify"], "help": "show what is stored, remove activations, or compare checksums"},
            ),
            (("--dir",), {"metavar": "DIR", "help": "the cache folder: the cache.dir of your runs (regraft in the user's cache folder)"}),
            (("--json",), {"action": "store_true", "help": "list: JSON instead of a table, sizes in bytes"}),
            (("--max-gb",), {"type": float, "metavar": "N", "help": "prune: remove the longest unused until N GB of activations are left"}),
            (("--unused-days",), {"type": float, "metavar": "N", "help": "prune: remove what no run has used for N days"}),
            (("--all",), {"action": "store_true", "help": "prune: remove all activations that no process uses"}),
            (("--dry-run",), {"action": "store_true", "help": "prune: only show what would be removed"}),
        ],
        "what the cache folder holds; prune removes activations alone: weights/ is what run folders need to be opened",
    ),
    "evaluate": (
        _evaluate,
        [
            (("run",), {"metavar": "RUN", "help": "a run folder"}),
            (("--json",), {"action": "store_true", "help": "JSON instead of a table"}),
            (
                ("--tolerance",),
                {
                    "type": float,
                    "default": 0.005,
                    "help": "difference from the recorded metrics that passes; a part of those above 1 (0.005)",
                },
            ),
        ],
        "measure a finished run again, from its weights and its data",
    ),
    "predict": (
        _predict,
        [
            (("run",), {"metavar": "RUN", "help": "a run folder"}),
            (("files",), {"nargs": "+", "metavar": "FILE", "help": "pictures, or folders of pictures"}),
            (("--json",), {"action": "store_true", "help": "a line of JSON for each picture"}),
            (("--top",), {"type": int, "default": 3, "help": "how many classes to show (3)"}),
        ],
        "what a finished run says of pictures",
    ),
}


class _Parser(argparse.ArgumentParser):
    """Tells a mistake as every other mistake is told."""

    def error(self, message: str) -> NoReturn:
        raise UserError(Problem(self.prog, None, f"{message}; {self.prog} --help shows what it takes"))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("regraft", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"regraft {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, (_, arguments, about) in VERBS.items():
        verb = verbs.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        for flags, keywords in arguments:
            verb.add_argument(*flags, **keywords)
    return parser


if __name__ == "__main__":
    sys.exit(main())
