"""regraft adapts trained networks to new data. `regraft.run(overrides)` trains; `regraft.load(folder)` opens a finished run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regraft.graft import Run

__version__ = "0.1.0"
__all__ = ["load", "run"]


def run(overrides: Sequence[str] = ()) -> Run:
    """One run, as `regraft train` makes it, in a process of its own; done at once where it is done already.

    Raises UserError for a mistake in the overrides, and for a run that failed.
    """
    from regraft import config, dispatch, sweep

    planned = sweep.plan([config.Composer().one(list(overrides))])
    folder = dispatch.run(planned, f"regraft.run({list(overrides)!r})", lambda what: None)[0]
    dispatch.succeeded(folder)
    return load(folder.path)


def load(folder: str | os.PathLike[str]) -> Run:
    """A finished run's net, classes and record, ready to predict. Raises UserError for a folder that is no whole, done run."""
    from regraft.graft import Run

    return Run(folder)
