"""A freeze policy is a list of phases; each phase draws a boundary in the chain: below it nothing changes, above it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, create_model

from regraft.errors import Problem, UserError, shown
from regraft.layout import HEAD, Layout, Place, Stages
from regraft.registry import Group, Named, Spec, doc, parse

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.chain import Chain

Only = Literal["all", "norms", "biases"]  # as a user writes it
Objective = Literal["task", "stage"]


@dataclass(frozen=True)
class Phase:
    """A stretch of training in which the same parameters train."""

    name: str
    epochs: int
    boundary: str  # the lowest stage that trains; what lies below it gives the same answer every time
    trains: tuple[str, ...]  # the stages in which anything trains, in the chain's order
    lr: float = 1.0  # factor on optimizer.lr
    only: Only | Literal["adapters"] = "all"  # which of these stages' parameters train; the head trains wholly
    norm_stats: Literal["train", "frozen"] = "train"  # running statistics of norms that would move
    factors: tuple[tuple[str, float], ...] = ()  # stages whose learning rate has a factor of its own, beside `lr`
    pull: tuple[float, float] | None = (
        None  # alpha towards the start for the backbone, beta towards 0 for the rest; instead of weight decay
    )
    # what is minimised: the task's loss; or, of the one stage that trains, its own (`learning.Solitary`), whatever lies above it
    objective: Objective = "task"

    def factor(self, stage: str) -> float:
        """What a stage's learning rate is multiplied by, beside `lr`."""
        return dict(self.factors).get(stage, 1.0)

    def plain(self) -> dict[str, Any]:
        return asdict(self) | {"trains": list(self.trains), "factors": dict(self.factors), "pull": list(self.pull) if self.pull else None}


class FreezePolicy(Named):
    """Common to all policies; an entry of its own gives `draw`."""

    layer_decay: float = doc("factor on the learning rate for each stage from the head downward, 0..1; 1: none", gt=0, le=1)
    stage_lr: dict[str, Annotated[float, Field(gt=0)]] | None = doc("factors on the learning rate: {STAGE or block: FACTOR}; null: none")
    alone: ClassVar[bool] = False  # whether stages train by losses of their own, which not every net has

    norm_stats: Literal["train", "frozen"] = doc("running statistics of norms in what trains: train (they move) or frozen (they stay)")

    def draw(self, layout: Layout, epochs: int) -> list[Phase]:
        """The phases of a run; what they train are `layout.names(...)`. Raises UserError for what this net does not have."""
        raise NotImplementedError

    def adapt(self, chain: Chain, sample: Tensor) -> None:
        """Puts into a chain what trains beside its own layers; most policies put nothing there. `sample`: as `Chain` takes it. Draws from
        torch's global stream. Raises UserError where the net has no place for it."""

    def redrawn(self, stages: Stages) -> tuple[str, ...]:
        """The stages of a chain that is split at `cuts` whose weights are not taken: they begin as random ones. Most policies name none."""
        return ()

    def named(self) -> Iterator[Place]:
        """The stages and blocks that this policy is given by name."""
        return iter(())

    def asks(self) -> bool:
        """Whether a net's stages must be known to see that the policy fits it."""
        return any(True for _ in self._places())

    def epochs_problem(self, epochs: int) -> Problem | None:
        """Why trainer.max_epochs does not suit this policy; None: it does."""
        return None

    def cuts(self, stages: Stages = ()) -> list[str]:
        """The blocks at which `Chain.split` must be called before training. Raises UserError with every name that is not there."""
        return Layout(stages).cut(self._places()) if stages else []

    def drawn(self, stages: Stages, epochs: int) -> list[Phase]:
        """The phases of a run on a chain that is split at `cuts`. `stages`: `Chain.layout`. Raises UserError for what is not there."""
        if problem := self.epochs_problem(epochs):
            raise UserError(problem)
        layout = Layout(stages)
        layout.cut(self._places())
        drawn = self.draw(layout, epochs)
        rates = tuple((stage, factor) for stage, factor in self._factors(layout) if factor != 1)
        return [
            replace(each, norm_stats=self.norm_stats, factors=tuple((stage, factor) for stage, factor in rates if stage in each.trains))
            for each in drawn
        ]

    def _places(self) -> Iterator[Place]:
        yield from self.named()
        yield from (Place("freeze.stage_lr", name, "alone") for name in self.stage_lr or ())

    def _factors(self, layout: Layout) -> Iterator[tuple[str, float]]:
        """A block's own factor goes before its stage's; layer_decay counts whole stages, wherever the chain is split."""
        given = {layout.spans[name]: factor for name, factor in (self.stage_lr or {}).items()}
        for block, name in layout.pieces.items():
            own = [span for span in given if span[0] <= block < span[1]]
            narrowest = min(own, key=lambda span: span[1] - span[0], default=None)
            below_head = len(layout.stages) - 1 - layout.stage(block)
            yield name, self.layer_decay**below_head * (1.0 if narrowest is None else given[narrowest])


def phase(name: str, epochs: int, trains: Sequence[str], lr: float = 1.0, **more: Any) -> Phase:
    return Phase(name, epochs, trains[0], tuple(trains), lr, **more)


class Nothing(FreezePolicy):
    """Fine-tune: every stage trains."""

    def draw(self, layout: Layout, epochs: int) -> list[Phase]:
        return [phase("fine-tune", epochs, layout.names(0))]


class BackboneFrozen(FreezePolicy):
    """Linear probe: only the head trains."""

    def draw(self, layout: Layout, epochs: int) -> list[Phase]:
        return [phase("probe", epochs, [HEAD])]


class Last(FreezePolicy):
    """The last n stages below the head train, and the head."""

    n: int = doc("how many stages below the head train; 0 is the linear probe", ge=0)

    def asks(self) -> bool:
        return self.n > 0 or super().asks()

    def draw(self, layout: Layout, epochs: int) -> list[Phase]:
        *below, _ = layout.stages
        if self.n > len(below):
            raise UserError(Problem("freeze.n", self.n, f"the net has {len(below)} stages below the head: {', '.join(below)}"))
        lowest = layout.stages[len(below) - self.n]
        return [phase(f"last {self.n}", epochs, layout.names(layout.spans[lowest][0]))]


class Until(FreezePolicy):
    """Everything up to and including one stage or block is frozen; what lies above it trains."""

    stage: str = doc("the highest stage or block that is frozen: layer3, layer3.1")

    def named(self) -> Iterator[Place]:
        yield Place("freeze.stage", self.stage, "until")

    def draw(self, layout: Layout, epochs: int) -> list[Phase]:
        _, end = layout.spans[self.stage]
        if end == len(layout.row):
            remedy = f"nothing would train: the head is the last stage; freeze.stage={layout.stages[-2]} trains the head alone"
            raise UserError(Problem("freeze.stage", self.stage, remedy))
        return [phase(f"above {self.stage}", epochs, layout.names(end))]


class Transplant(Until):
    """What lies up to a stage keeps its weights, what lies above begins as random ones and trains (Yosinski et al. 2014, section 2)."""

    stage: str = doc("the highest stage or block that keeps its weights; all above begin as random ones: layer3, layer3.1")
    frozen: bool = doc("true: what keeps its weights is frozen (AnB); false: it trains too (AnB+)")

    def redrawn(self, stages: Stages) -> tuple[str, ...]:
        layout = Layout(stages)
        layout.cut(self._places())
        return layout.names(layout.spans[self.stage][1])

    def draw(self, layout: Layout, epochs: int) -> list[Phase]:
        [above] = super().draw(layout, epochs)
        return [above] if self.frozen else [phase(f"with {self.stage}", epochs, layout.names(0))]


class LinearProbeFineTune(FreezePolicy):
    """LP-FT: first the head alone, then everything (Kumar et al. 2022, section 3.4)."""

    probe: float = doc("part of the epochs that probe, 0..1; each phase gets at least one epoch", gt=0, lt=1)
    finetune_lr: float = doc("factor on optimizer.lr while fine-tuning", gt=0)

    def epochs_problem(self, epochs: int) -> Problem | None:
        return Problem("trainer.max_epochs", epochs, f"freeze={self.name} needs at least 2") if epochs < 2 else None

    def draw(self, layout: Layout, epochs: int) -> list[Phase]:
        probe = min(max(1, round(self.probe * epochs)), epochs - 1)
        return [phase("probe", probe, [HEAD]), phase("fine-tune", epochs - probe, layout.names(0), self.finetune_lr)]


class Gradual(FreezePolicy):
    """Gradual unfreezing: the head first, then one more stage from the top every few epochs (Howard & Ruder 2018, section 3.3).

    The last phase takes what is left of the epochs; where they don't suffice, the lowest stages are never reached.
    """

    every: int = doc("epochs between two stages", ge=1)
    down_to: str | None = doc("the lowest stage or block that is reached; null: the whole net")

    def named(self) -> Iterator[Place]:
        if self.down_to is not None:
            yield Place("freeze.down_to", self.down_to, "from")

    def draw(self, layout: Layout, epochs: int) -> list[Phase]:
        floor = 0 if self.down_to is None else layout.spans[self.down_to][0]
        begins = {max(floor, layout.spans[stage][0]): None for stage in reversed(layout.stages)}
        steps = list(begins)[: -(-epochs // self.every)]
        lengths = [self.every] * (len(steps) - 1)
        trains = [layout.names(begin) for begin in steps]
        return [
            phase("head" if own[0] == HEAD else f"from {own[0]}", length, own)
            for own, length in zip(trains, [*lengths, epochs - sum(lengths)], strict=True)
        ]


class NormOnly(FreezePolicy):
    """All norms' scales and shifts train, and the head; all other weights stay (Frankle et al. 2021)."""

    only: ClassVar[Only] = "norms"

    def draw(self, layout: Layout, epochs: int) -> list[Phase]:
        return [phase(self.only, epochs, layout.names(0), only=self.only)]


class BitFit(NormOnly):
    """All biases train, and the head; all other weights stay (Ben Zaken et al. 2022, section 3)."""

    only: ClassVar[Only] = "biases"


class Lora(FreezePolicy):
    """Low-rank adapters train beside frozen layers, and the head (Hu et al. 2022, section 4.1). What lies below the lowest is cached."""

    rank: int = doc("columns of each adapter", ge=1)
    alpha: int = doc("an adapter's answer is multiplied by alpha / rank", ge=1)
    layers: Literal["auto", "attention", "convolutions", "all"] = doc(
        "which layers; auto: attention's where there are any, else convolutions"
    )
    kind: Literal["lora", "dora"] = doc("dora: a layer's length trains apart from its direction (Liu et al. 2024)")
    down_to: str | None = doc("the lowest stage or block with adapters; null: the whole net")

    def problems(self) -> list[Problem]:
        return [] if find_spec("peft") else [Problem("name", self.name, "the package peft is not installed: pip install 'regraft[lora]'")]

    def named(self) -> Iterator[Place]:
        if self.down_to is not None:
            yield Place("freeze.down_to", self.down_to, "from")

    def draw(self, layout: Layout, epochs: int) -> list[Phase]:
        return [phase(self.kind, epochs, layout.names(0 if self.down_to is None else layout.spans[self.down_to][0]), only="adapters")]

    def adapt(self, chain: Chain, sample: Tensor) -> None:
        from regraft import adapters

        names = adapters.fitting(chain, self.layers, self.down_to, sample)
        if not names:
            where = f" from {self.down_to} upward" if self.down_to else ""
            remedy = f"this net has no such layers{where} that take adapters; freeze.layers=all takes every linear layer and convolution"
            raise UserError(Problem("freeze.layers", self.layers, remedy))
        adapters.put(chain, names, self.rank, self.alpha, self.kind == "dora")


class Surgical(FreezePolicy):
    """A few stages train; they need not be neighbours (Lee et al. 2023, section 2)."""

    stages: list[str] = doc("the stages or blocks that train: [layer1]", min_length=1)
    head: bool = doc("true: the head trains too; false: it stays as it began, which is meant for head.kept=true", before=True)

    def named(self) -> Iterator[Place]:
        yield from (Place("freeze.stages", name, "alone") for name in self.stages)

    def draw(self, layout: Layout, epochs: int) -> list[Phase]:
        return [phase("surgical", epochs, layout.inside([*self.stages, *([HEAD] if self.head else [])]))]


class L2SP(FreezePolicy):
    """Everything trains and is pulled towards where it started (Li et al. 2018, eq. 2), in place of weight decay."""

    alpha: float = doc("strength of the pull of the backbone towards its start: alpha/2 |w - w0|^2", ge=0)
    beta: float = doc("strength of the pull of the head towards 0: beta/2 |w|^2", ge=0)

    def draw(self, layout: Layout, epochs: int) -> list[Phase]:
        return [phase("l2-sp", epochs, layout.names(0), pull=(self.alpha, self.beta))]


class _Written(Spec):
    """A phase as a user writes it in a list; defaults stand here, since an item of a list has no YAML file of its own."""

    name: str = doc("what tables and pictures call it")
    epochs: int = doc("how many epochs of trainer.max_epochs", ge=1)
    trains: list[str] | None = doc("the stages or blocks that train", min_length=1, default=None)
    lr: float = doc("factor on optimizer.lr", gt=0, default=1.0)
    only: Only = doc("which of their parameters train, the head's aside: all, norms or biases", default="all")


# `from` is a word of Python's, and can't be written as a field
Written: Any = create_model("Written", __base__=_Written, **{"from": (str | None, doc("it trains, and all above it", default=None))})  # type: ignore[call-overload]


class Phases(FreezePolicy):
    """Phases of your own, as a list; together they last as long as trainer.max_epochs."""

    phases: list[Any] = doc("list of {name, epochs, trains: [STAGE, ...] or from: STAGE, lr: FACTOR, only: all|norms|biases}", min_length=1)

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        for number, values in enumerate(self.phases):
            try:
                _written(values, f"freeze.phases[{number}]")
            except UserError as error:
                found += [problem._replace(key=problem.key.removeprefix("freeze.")) for problem in error.problems]
        return found

    def epochs_problem(self, epochs: int) -> Problem | None:
        whole = sum(each.epochs for _, each in self._written())
        remedy = f"the phases of freeze.phases last {whole} epochs together; trainer.max_epochs={whole} would work"
        return Problem("trainer.max_epochs", epochs, remedy) if whole != epochs else None

    def named(self) -> Iterator[Place]:
        for at, each in self._written():
            if lowest := getattr(each, "from"):
                yield Place(f"{at}.from", lowest, "from")
            yield from (Place(f"{at}.trains", name, "alone") for name in each.trains or ())

    def draw(self, layout: Layout, epochs: int) -> list[Phase]:
        found = []
        for _, each in self._written():
            lowest = getattr(each, "from")
            trains = layout.names(layout.spans[lowest][0]) if lowest else layout.inside(each.trains)
            found.append(phase(each.name, each.epochs, trains, each.lr, only=each.only))
        return found

    def _written(self) -> list[tuple[str, Any]]:
        """Each phase with its key. Raises UserError for one that is wrong."""
        keys = [f"freeze.phases[{number}]" for number in range(len(self.phases))]
        return [(key, _written(values, key)) for key, values in zip(keys, self.phases, strict=True)]


def _written(values: Any, at: str) -> Any:
    if not isinstance(values, Mapping):
        raise UserError(Problem(at, shown(values), "a phase is needed: {name: probe, epochs: 2, trains: [head]}"))
    written: Any = parse(Written, values, at)
    if (written.trains is None) == (getattr(written, "from") is None):
        raise UserError(Problem(f"{at}.trains", written.trains, "either trains: [STAGE, ...] is needed or from: STAGE, and not both"))
    return written


class Greedy(FreezePolicy):
    """The lowest stage trains alone and without truth, then the next one on what it gives, up to the head; then everything trains for the
    task (Hinton et al. 2006, section 4; Bengio et al. 2007)."""

    alone = True

    pretrain: int = doc("epochs of each stage; 0: none learns alone, which is what pretraining is compared with", ge=0)
    pretrain_lr: float = doc("factor on optimizer.lr while a stage trains alone", gt=0)

    def asks(self) -> bool:
        return True

    def draw(self, layout: Layout, epochs: int) -> list[Phase]:
        *below, _ = layout.stages
        left = epochs - self.pretrain * len(below)
        if left < 0:
            needed = self.pretrain * len(below)
            remedy = (
                f"{len(below)} stages of {self.pretrain} epochs each need {needed}, and all beyond train the task; {needed + 1} would work"
            )
            raise UserError(Problem("trainer.max_epochs", epochs, remedy))
        below = below if self.pretrain else []
        alone = [phase(stage, self.pretrain, layout.inside([stage]), self.pretrain_lr, objective="stage") for stage in below]
        return [*alone, phase("fine-tune", left, layout.names(0))] if left else alone


GROUP = Group(
    "freeze",
    {
        "none": Nothing,
        "backbone": BackboneFrozen,
        "last": Last,
        "until": Until,
        "transplant": Transplant,
        "surgical": Surgical,
        "lp_ft": LinearProbeFineTune,
        "gradual": Gradual,
        "norm_only": NormOnly,
        "bitfit": BitFit,
        "l2_sp": L2SP,
        "lora": Lora,
        "greedy": Greedy,
        "phases": Phases,
    },
    "regraft.freeze",
    about="what stays as it was, and when",
)
