"""One run, or a group of runs that share all below their heads: from configs to results; knows no Hydra."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning.utilities import rank_zero_only

from regraft import freezing, outlook, together, weights
from regraft.chain import Chain
from regraft.engine import Engine, quiet
from regraft.errors import Problem, UserError
from regraft.graft import build, same_data, state_of
from regraft.record import RunFolder
from regraft.results import finish
from regraft.settings import Settings, settings
from regraft.together import Begun

if TYPE_CHECKING:
    from rich.console import RenderableType

    from regraft.freeze import Phase
    from regraft.weights import Origin

Say = Callable[["RenderableType"], None]


def execute(folders: Sequence[RunFolder], say: Say, show: bool = False) -> None:
    """Run what the folders' configs say, and leave the results there; every rank of a run calls this.

    Several folders are a group (`regraft.grouping`): what lies below their heads is the same, and so is built and run once. A run of a
    group that fails alone says `failed` afterwards; what concerns all is raised. `show`: draw progress bars. Raises UserError for what
    a user can mend; the folder then still says `running`.
    """
    start = time.time()
    quiet()
    rank = int(os.environ.get("RANK", 0))
    rank_zero_only.rank = rank  # type: ignore[attr-defined]  # Lightning's was read when the server was loaded that ranks are forked from
    of, records = [settings(folder.config) for folder in folders], [folder.record for folder in folders]
    s = of[0]
    if missing := s.hardware.missing():  # where the run was planned on another machine, nobody has looked yet
        raise UserError(problem._replace(key=f"hardware.{problem.key}") for problem in missing)
    if (world := int(os.environ.get("WORLD_SIZE", 1))) != s.batch.devices:  # ranks that wait for others would wait for ever
        raise RuntimeError(f"{s.batch.devices} devices were asked for, {world} take part")
    torch.set_num_threads(s.hardware.computing())
    source = s.dataset.opened(s.cache.folder())
    for record in {record["data"]["fingerprint"]: record for record in records}.values():
        same_data(source, record)
    if unfit := s.fits(source.facts()):
        raise UserError(unfit)
    chain, origin = build(s, source.classes, source.facts()["input"])
    before = state_of(chain)
    identity = weights.fingerprint(before)

    def tell(text: str) -> None:
        if rank == 0:
            say(text)

    first = Engine(s, chain, source, folders[0], tell, show and rank == 0)
    first.whiten()
    engines = [
        first,
        *(Engine(each, chain, source, folder, tell, False, first) for each, folder in zip(of[1:], folders[1:], strict=True)),
    ]
    runs = []
    tables = [_stages(chain, phase) for phase in first.phases]  # runs of a group train the same stages
    for engine, record in zip(engines, records, strict=True):
        warned = [*engine.settings.hardware.warnings(), *source.remarks, *_warnings(chain, engine)]
        phases = [
            phase.plain() | {"stages": [row | {"lr": _rate(engine.settings, phase, row["stage"])} for row in table]}
            for phase, table in zip(engine.phases, tables, strict=True)
        ]
        if rank == 0:
            engine.folder.update(**_facts(engine, origin, identity, phases, warned))
        runs.append(Begun(engine, record, warned, record["times"]["launched"], start - record["times"]["launched"]))
        if rank == 0 and engine is first:
            _introduce(say, phases, warned)
    if rank == 0 and set(chain.state_dict()) - first.changing:  # what stays frozen is kept once, for all runs that share it
        weights.Kept(s.cache.folder()).put(before)
    noted = False
    with together.tracked(runs):
        for run in together.trained(runs, rank):
            if rank:
                continue
            try:
                finish(run)
            except Exception as error:
                if len(runs) == 1:
                    raise
                run.fail(error)
                continue
            if not noted:  # what one of a group has needed, all have
                noted = True
                outlook.note(run.engine.settings, origin.identity, run.engine.folder.record, run.engine.epochs)


def _introduce(say: Say, phases: list[dict[str, Any]], warned: list[str]) -> None:
    from regraft.report import tables

    say(tables.stages([{**phase, "rows": phase["stages"]} for phase in phases]))
    for warning in warned:
        say(f"warning: {warning}")


def _facts(engine: Engine, origin: Origin, identity: str, phases: list[dict[str, Any]], warned: list[str]) -> dict[str, Any]:
    """What the record says of a run before it trains; `identity`: the hash of the weights that its backbone starts from."""
    s = engine.settings
    return {
        "weights": {
            "source": s.model.weights,
            "identity": origin.identity,
            "sha256": identity,
            "lineage": weights.lineage(RunFolder(origin.path).record) if origin.kind == "run" and origin.path else [],
        },
        "phases": phases,
        "batch": engine.batch.plain(),
        "resolved": {
            "accelerator": s.hardware.accelerator(),
            "world": int(os.environ.get("WORLD_SIZE", 1)),
            "size": s.size,
            "threads": torch.get_num_threads(),
        },
        "metric": s.task.METRICS[0],
        "reported": _reported(s),
        "warnings": warned,
    } | ({"units": [numbers.tolist() for numbers in engine.units]} if engine.units else {})


def _reported(s: Settings) -> dict[str, Any] | None:
    """The top-5 error on ImageNet that is told of this net, beside which ours stands; None: this run does not measure it."""
    reported = s.model.reported if s.dataset.name == "imagenet" else None
    return {"top5_error": reported[0], "source": reported[1]} if reported else None


def _warnings(chain: Chain, engine: Engine) -> list[str]:
    """What a user should know of before training. Raises UserError for what `hardware.batchnorm=refuse` refuses."""
    norms, s, batch = (torch.nn.modules.batchnorm._BatchNorm,), engine.settings, engine.batch
    several = batch.devices * batch.accumulate > 1
    if not several or not any(isinstance(module, norms) for phase in engine.phases for module in freezing.awake(chain, phase)):
        return []
    division = f"{batch.devices} devices x {batch.accumulate} micro-batches"
    if s.hardware.batchnorm == "refuse":
        raise UserError(
            Problem("hardware.batchnorm", "refuse", f"BatchNorm would train over {division}; local or sync, or one device, work")
        )
    seen = batch.micro * (batch.devices if s.hardware.syncs() else 1)
    if seen == batch.size:
        return []
    why = ", since SyncBatchNorm needs GPUs" if s.hardware.batchnorm == "sync" and s.hardware.accelerator() != "gpu" else ""
    kind = "sync" if s.hardware.syncs() else "local"
    return [f"BatchNorm takes its statistics from {seen} pictures, not from {batch.size} ({division}; {kind}{why})"]


def _stages(chain: Chain, phase: Phase) -> list[dict[str, Any]]:
    """The table of stages before a phase, the lowest stage first."""
    freezing.gradients(chain, phase)
    trained = {stage: [p.numel() for _, p in chain.named_parameters_of(stage) if p.requires_grad] for stage in chain.stages}
    return [
        {
            "stage": stage,
            "parameters": count,
            "training": sum(trained[stage]),
            "trains": stage in phase.trains,
            "mode": "train" if stage in phase.trains else "eval",
            "output": list(shape),
        }
        for stage, count, shape in chain.summary()
    ]


def _rate(s: Settings, phase: Phase, stage: str) -> float | None:
    """A stage's learning rate at its peak; None: it does not train."""
    return s.optimizer.lr * phase.lr * phase.factor(stage) if stage in phase.trains else None
