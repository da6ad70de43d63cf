"""The verbs of the command line; each imports what it needs only when it is called."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from regraft import __version__
from regraft.errors import Problem, UserError, nearest, said
from regraft.verbs import VERBS

ABOUT = """\
Adapt trained networks to your own data: graft a head on a backbone, decide what stays frozen, sweep and compare.

  regraft train                                 ImageNet's EfficientNet-Lite0, frozen, on the embedded clipart
  regraft train model=resnet model.depth=50     any key is an override; `regraft list` shows the groups
  regraft train -m freeze=backbone,last,none    several values make a sweep, with one folder for each run
"""


ASKED = "_ARGCOMPLETE"  # the variable by which a shell asks what completes its line
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)  # by a disk, or by whoever owns a folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0: all went well; 1: a run failed, or a check did not pass; 2: a mistake in what was asked for."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] not in VERBS and (_override(words[0]) or words[0] in ("-m", "--multirun")):
        words.insert(0, "train")
    try:
        parser = _parser()
        if ASKED in os.environ:
            from regraft import completing

            completing.answer(parser)
        if not words:
            parser.print_help()
            return 0
        if words[0] not in VERBS and not words[0].startswith("-"):
            raise UserError(Problem(words[0], None, f"no such verb; {nearest(words[0], VERBS) or 'there are ' + ', '.join(VERBS)}"))
        options, rest = parser.parse_known_args(words)
        strange = [word for word in rest if word.startswith("-")]
        if strange:
            known = [flag for action in VERBS[words[0]][0] for flag in action[0] if flag.startswith("-")]
            hint = nearest(strange[0], known) or f"regraft {words[0]} --help shows them"
            raise UserError(Problem(strange[0], None, f"no such option of {words[0]}; {hint}"))
        takes = next((name for name in ("overrides", "changes") if name in options), None)
        if rest and takes is None:
            raise UserError(Problem(rest[0], None, f"{words[0]} takes no more than regraft {words[0]} --help shows"))
        if takes:
            setattr(options, takes, [*getattr(options, takes), *rest])  # argparse leaves those that stand behind an option
        status = int(CALLS[words[0]](options))
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
    except OSError as error:
        if error.errno not in REFUSED or error.filename is None:
            raise
        remedy = f"can't be written ({error.strerror}); mend that, and the same command goes on"
        _tell(UserError(Problem(str(error.filename), None, remedy)))
        return 2


def _train(options: argparse.Namespace) -> int:
    from rich.console import Console

    from regraft import config, dispatch, sweep
    from regraft.record import ENDED
    from regraft.report import swept, tables

    composer = config.Composer(options.config_name, options.config_dir)
    if given := composer.searched(options.overrides, options.multirun):
        return _search(composer, given, options)
    jobs = composer.jobs(options.overrides, options.multirun)
    if options.cfg:
        _print_config(jobs[0], options.cfg)
        return 0
    console = Console(highlight=False)
    planned = sweep.plan(jobs, skipped=composer.skipped)
    _tell_skipped(composer)
    command = shlex.join(["regraft", "train", *(["-m"] if options.multirun else []), *options.overrides])
    single = jobs[0].single
    folders = dispatch.run(planned, command, lambda what: console.print(what, markup=False, soft_wrap=isinstance(what, str)), show=single)
    failed = [folder for folder in folders if not folder.waits and folder.record["status"] not in ENDED]
    if not folders:
        print(f"regraft: nothing is left of {planned[0].folder.path}: it was removed while it ran", file=sys.stderr)
    elif single and not failed:
        console.print(tables.result(folders[0]))
    elif not single:
        console.print(swept.table(folders, sweep.axes(planned)))
        console.print(f"runs: {_shown(Path(os.path.commonpath([folder.path for folder in folders])))}", markup=False, soft_wrap=True)
    else:
        error = folders[0].record["error"]
        what, again = ("failed", "tries again") if folders[0].record["status"] == "failed" else ("was interrupted", "goes on with it")
        print(f"regraft: the run {what}: {said(error)}", file=sys.stderr)
        print(f"  more in {_shown(folders[0].path)}/log.txt; the same command {again}", file=sys.stderr)
    return 1 if failed or len(folders) < len(planned) else 0  # one without a folder was removed, or never begun


def _search(composer: Any, given: Any, options: argparse.Namespace) -> int:
    from rich.console import Console

    from regraft import search
    from regraft.report import swept

    asked = search.Search(composer, given)
    if options.cfg:
        _print_config(asked.first.job, options.cfg)
        return 0
    console = Console(highlight=False)
    command = shlex.join(["regraft", "train", "-m", *options.overrides])
    found = asked.run(command, lambda what: console.print(what, markup=False, soft_wrap=isinstance(what, str)))
    console.print(swept.table(found.folders, found.axes))
    console.print(f"search: {found.line}\nruns: {_shown(asked.at)}", markup=False, soft_wrap=True)
    return 0 if found.whole else 1


def _tell_skipped(composer: Any) -> None:
    for point, why in composer.skipped.items():
        print(f"left out (sweep.skip_invalid): {point}: {why}")


def _print_config(job: Any, what: str) -> None:
    import yaml

    shown = {"job": job.config, "hydra": {"hydra": job.hydra}, "all": {**job.config, "hydra": job.hydra}}[what]
    print(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), end="")


def _check(options: argparse.Namespace) -> int:
    from regraft import ahead, config, sweep

    composer = config.Composer(options.config_name, options.config_dir)
    if given := composer.searched(options.overrides, options.multirun):
        from regraft import search

        print("\n".join(search.Search(composer, given).ahead()))
        return 0
    planned = sweep.plan(composer.jobs(options.overrides, options.multirun), skipped=composer.skipped)
    _tell_skipped(composer)
    print("\n".join(ahead.lines(planned, sweep.groups(planned), sweep.ahead(planned), _shown)))
    return 0


def _preview(options: argparse.Namespace) -> int:
    from regraft import config, preview

    job = config.Composer(options.config_name, options.config_dir).one(options.overrides)
    source = job.settings.dataset.opened(job.settings.cache.folder())
    path = Path(options.output).expanduser().absolute()
    preview.write(job.settings, source, path, options.pictures, options.draws)
    print(_shown(path))
    return 0


def _find_lr(options: argparse.Namespace) -> int:
    from regraft import config, range_test

    if options.steps < 10:
        raise UserError(Problem("--steps", options.steps, "at least 10 are needed"))
    job = config.Composer(options.config_name, options.config_dir).one(options.overrides)
    source = job.settings.dataset.opened(job.settings.cache.folder())
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


def _status(options: argparse.Namespace) -> int:
    from regraft import status

    return status.command(options.dir, options.watch, options.json)


def _evaluate(options: argparse.Namespace) -> int:
    from regraft import asking

    return asking.evaluate(options.run, options.tolerance, options.json)


def _predict(options: argparse.Namespace) -> int:
    from regraft import asking

    out = Path(options.draw).expanduser().absolute() if options.draw else None
    return asking.predict(options.run, options.files, options.top, options.json, out)


def _diff(options: argparse.Namespace) -> int:
    from regraft import asking

    return asking.diff(options.first, options.second, options.json)


def _report(options: argparse.Namespace) -> int:
    from regraft import reporting

    axes = [axis for axis in options.axes.split(",") if axis]
    return reporting.command(options.dirs, options.output, axes, options.title, print)


def _reproduce(options: argparse.Namespace) -> int:
    from regraft import reproducing

    return reproducing.command(options.run, options.changes, options.output, options.tolerance, options.json, print)


def _paper(options: argparse.Namespace) -> int:
    from regraft import publishing

    if options.paper is None:
        print(publishing.listed())
        return 0
    if options.show:
        print(publishing.shown(options.paper, options.full, options.changes))
        return 0
    from rich.console import Console

    console = Console(highlight=False)
    return publishing.command(
        options.paper,
        options.full,
        options.changes,
        options.output,
        lambda what: console.print(what, markup=False, soft_wrap=isinstance(what, str)),
    )


def _completion(options: argparse.Namespace) -> int:
    from regraft import completing

    print(completing.script(options.shell))
    return 0


def _generate(options: argparse.Namespace) -> int:
    from regraft import asking

    for path in asking.generate(**vars(options)):
        print(_shown(path))
    return 0


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


CALLS = {
    "train": _train,
    "check": _check,
    "preview": _preview,
    "find-lr": _find_lr,
    "list": _list,
    "cache": _cache,
    "status": _status,
    "evaluate": _evaluate,
    "predict": _predict,
    "generate": _generate,
    "diff": _diff,
    "report": _report,
    "reproduce": _reproduce,
    "paper": _paper,
    "completion": _completion,
}


class _Parser(argparse.ArgumentParser):
    """Tells a mistake as every other mistake is told."""

    def error(self, message: str) -> NoReturn:
        raise UserError(Problem(self.prog, None, f"{message}; {self.prog} --help shows what it takes"))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("regraft", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"regraft {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, (arguments, about) in VERBS.items():
        verb = verbs.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        for flags, keywords in arguments:
            verb.add_argument(*flags, **keywords)
    return parser


if __name__ == "__main__":
    sys.exit(main())
