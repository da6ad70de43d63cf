"""A net is a chain of named stages: it can be cut between two of them, and every cut that is offered has proved itself.

Cuts are found, not listed. One forward pass is watched through the net's *units* (its top-level children; sequences opened once).
Where the tensor that enters a unit is the very object that left the unit called before it, the net can be cut. To run from a cut, the
calls below give back blank tensors of the shape they had, the last of them the stored tensor, which also replaces what enters the unit
at the cut. To stop at a cut, the forward pass is left by an exception. Whatever hidden path would lead around a cut makes its proof fail.

Shapes: b pictures, c channels, h x w pixels, f features.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from regraft.errors import Problem, UserError, either, nearest
from regraft.layout import HEAD
from regraft.watching import candidates, evaluating, intercepted, units, watch

AUXILIARY = "auxiliary"
TOLERANCE = 1e-5  # of the largest value: a stored tensor may have another memory layout, and then another summation order


class CutError(Exception):
    """A cut does not hold: the part above it does not give the whole net's answer, or trains what lies below."""


class Auxiliary(NamedTuple):
    """A second classifier inside the net, for training alone: its loss is added to the head's (Szegedy et al. 2015, section 5)."""

    name: str  # a module's name: no dots
    after: str  # the unit that it listens to, and whose stage it belongs to
    weight: float  # of its loss beside the head's
    build: Callable[[int], nn.Module]  # number of classes -> [b, c, h, w] -> [b, classes]; draws from torch's global stream


@dataclass
class Backbone:
    """A library's own net without its classifier, and what must be known to feed it."""

    module: nn.Module  # [b, c, h, w] -> [b, f]
    stages: Mapping[str, tuple[str, ...]] | None  # published stage -> prefixes of children, in order of execution; None: found by watching
    classifier: str  # the prefix that the library's classifier has in a state dict, "" where it has none
    mean: tuple[float, ...]  # of a channel whose values lie in 0..1; (): what enters is taken as it is
    std: tuple[float, ...]
    channels: int
    least: int  # smallest picture side (px) that passes; 0 where no pictures enter: mean and std are empty then
    auxiliary: tuple[Auxiliary, ...] = ()
    leaves: tuple[tuple[int, ...], ...] = ()  # shapes of the tensors that leave it packed as one, [b, n]; (): what leaves is one tensor


class _Reached(Exception):
    """Leaves a forward pass with the tensor that enters the unit at a cut."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Chain(nn.Module):
    """A backbone as named stages, and a head on its features.

    Raises UserError for a picture size that the net does not take, or a stage or block that it does not have; CutError where a table of
    stages does not fit the net.
    A call with `start` or `stop` patches the units while it lasts: one thread at a time.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, head: nn.Module, sample: Tensor, classes: int | None = None) -> None:
        """`sample` [b, c, h, w]: prepared pictures, b = 2 or more; their h x w is the only one at which the net is run from a cut. Or
        b = 3 of what else enters the net, of which the last shows that a cut holds.

        `classes`: how many the auxiliary classifiers tell apart, drawn from torch's global stream; None: there shall be none.
        """
        super().__init__()
        self.backbone, self.head = backbone.module, head
        tapped = backbone.auxiliary if classes is not None else ()
        self.auxiliary = nn.ModuleDict({each.name: each.build(classes or 0) for each in tapped})
        self._taps = {each.name: each for each in tapped}
        self._heard: list[tuple[float, Tensor]] = []
        self.register_buffer("mean", torch.tensor(backbone.mean)[:, None, None], persistent=False)  # [c, 1, 1]
        self.register_buffer("std", torch.tensor(backbone.std)[:, None, None], persistent=False)
        self.whitening: nn.Module | None = None  # what pictures pass through instead of the normalisation, where one was fitted
        self.to(sample.device)
        try:
            watched = sample if len(self.mean) else sample[:2]
            calls, features = watch(self.backbone, watched)
        except (RuntimeError, ValueError, AssertionError) as error:
            remedy = f"{type(self.backbone).__name__} does not run on pictures of {list(sample.shape[1:])} ({error}); give another size"
            raise UserError(Problem("data.size", sample.shape[-1], remedy)) from error
        self.features = features.shape[-1]
        self.enters, self._rows, self._end = sample.shape[1:], len(watched), len(calls)
        self._units = [call.unit for call in calls]
        self._left = [call.left for call in calls]
        self._enters = [*(call.entered.shape[1:] if call.entered is not None else None for call in calls), features.shape[1:]]
        self._calls: dict[str, list[int]] = {}  # unit -> its calls
        self._lowest: dict[str, int] = {}  # unit or sequence -> the first call inside it
        for i, unit in enumerate(self._units):
            self._calls.setdefault(unit, []).append(i)
            self._lowest.setdefault(unit, i)
            self._lowest.setdefault(unit.partition(".")[0], i)

        for tap in tapped:
            if tap.after not in self._calls:
                raise CutError(f"{tap.name} listens to {tap.after}, which the net does not call; it calls {', '.join(self._calls)}")
        names = [f"backbone.{unit}" if unit == HEAD else unit for unit in self._units]  # "head" is the one that was grafted
        held = self._proven(candidates(calls, self._rows), sample)
        owners = {self._position(name) for name, _ in self.named_parameters() if not name.startswith("head.")}
        starts = _published(backbone.stages, self._units) if backbone.stages else _found(self.backbone, self._units, names)
        bounds = [*(start for _, start in starts[1:]), self._end]
        own = [stage for stage, bound in zip(starts, bounds, strict=True) if any(stage[1] <= owner < bound for owner in owners)]
        starts = [stage for i, stage in enumerate(own) if i == 0 or stage[1] in held] or starts[:1] or [("stem", 0)]
        self._starts = [0, *(start for _, start in starts[1:]), self._end]
        self.stages: tuple[str, ...] = (*(name for name, _ in starts), HEAD)
        self.blocks: tuple[str, ...] = tuple(names[i] for i in held if i in owners and i not in self._starts)
        # each stage's blocks that hold parameters, the lowest first; () where it is of one piece; `split` leaves this as it is
        inside = [[i for i in owners if a <= i < b and (i == a or i in held)] for a, b in zip(self._starts, self._starts[1:], strict=False)]
        blocks = [tuple(names[i] for i in sorted(own)) if len(own) > 1 else () for own in inside]
        self.layout: dict[str, tuple[str, ...]] = dict(zip(self.stages, [*blocks, ()], strict=True))
        # every name that `start` and `stop` take -> the call before which it begins
        self.cuts = {names[i]: i for i in held} | dict(zip(self.stages, self._starts, strict=True))

    def prepare(self, x: Tensor) -> Tensor:
        """Pictures [b, c, h, w], uint8 or floats in 0..1 -> floats normalised by the net's own mean and deviation, or whitened; what is no
        picture stays as it is."""
        if not len(self.mean):
            return x
        scaled = x.to(self.mean.dtype) / 255 if x.dtype == torch.uint8 else x
        return (scaled - self.mean) / self.std if self.whitening is None else self.whitening(scaled)

    def forward(self, x: Tensor, start: str | None = None, stop: str | None = None) -> Tensor:
        """Prepared pictures [b, c, h, w] -> the head's answer.

        With `start`, x is the tensor that enters that stage or block; with `stop`, gives back the tensor that enters that one, and computes
        nothing above it (stop="head": features [b, f]).
        """
        first, last = 0 if start is None else self._at(start), self._end if stop is None else self._at(stop)
        if first > last:
            raise UserError(Problem("stop", stop, f"lies below start = {start}; the order is {', '.join(self.stages)}"))
        with self._listening(first, last) if self._taps else nullcontext():
            x = self._run(x, first, last)
        return self.head(x) if stop is None else x

    def heard(self) -> list[tuple[float, Tensor]]:
        """(weight of the loss, logits [b, classes]) of the auxiliary classifiers that ran in the last forward pass; told once."""
        heard, self._heard = self._heard, []
        return heard

    def split(self, cut: str) -> None:
        """Makes a block the begin of a stage of its own: its stage is what lies below it from now on, and the block's name all that lies
        from there to the next stage. Raises UserError for a name that is no block."""
        if cut not in self.blocks:
            remedy = nearest(cut, self.blocks) or f"the blocks are {either(self.blocks)}"
            raise UserError(Problem("stage", cut, f"{type(self.backbone).__name__} has no such block inside a stage; {remedy}"))
        place = bisect_right(self._starts, self.cuts[cut])
        self._starts.insert(place, self.cuts[cut])
        self.stages = (*self.stages[:place], cut, *self.stages[place:])
        self.blocks = tuple(block for block in self.blocks if block != cut)

    def prove(self, stage: str, x: Tensor) -> None:
        """Raises CutError if the net, cut at a stage or block, answers prepared pictures x otherwise, or trains what lies below.

        In eval mode, with NaN in every blank; features are compared (all that the head sees), to 1e-5 of the largest.
        """
        with evaluating(self.backbone), torch.no_grad():
            fault = self._fault(self._at(stage), self._end, self(x, stop=stage), self(x, stop=HEAD))
        if fault:
            raise CutError(f"{type(self.backbone).__name__} can't be cut at {stage}: {fault}")

    def stage_of(self, name: str) -> str:
        """The stage of a parameter, buffer or module, by its name in this chain ("backbone.layer1.0.conv1.weight")."""
        return self.stages[bisect_right(self._starts, self._position(name)) - 1]

    def below(self, name: str, cut: str) -> bool:
        """Whether a parameter, buffer or module lies below a stage or block."""
        return self._position(name) < self._at(cut)

    def named_parameters_of(self, stage: str) -> Iterator[tuple[str, nn.Parameter]]:
        return self._of(stage, self.named_parameters())

    def named_buffers_of(self, stage: str) -> Iterator[tuple[str, Tensor]]:
        return self._of(stage, self.named_buffers())

    def named_modules_of(self, stage: str) -> Iterator[tuple[str, nn.Module]]:
        return self._of(stage, self.named_modules())

    def summary(self) -> list[tuple[str, int, tuple[int, ...]]]:
        """For each stage: its name, its number of parameters, and the shape of one picture's tensor at its end."""
        with evaluating(self.head), torch.no_grad():
            answer = self.head(self.mean.new_zeros(self._rows, *(self._enters[-1] or ())))  # [b, f] -> [b, classes]
        ends = [*(self._enters[start] for start in self._starts[1:]), answer.shape[1:]]
        return [
            (stage, sum(parameter.numel() for _, parameter in self.named_parameters_of(stage)), tuple(end or ()))
            for stage, end in zip(self.stages, ends, strict=True)
        ]

    def _of(self, stage: str, named: Any) -> Iterator[Any]:
        if stage not in self.stages:
            raise UserError(Problem("stage", stage, nearest(stage, self.stages) or f"the stages are {either(self.stages)}"))
        return (
            (name, item) for name, item in named if name.split(".")[0] in ("backbone", AUXILIARY, HEAD) and self.stage_of(name) == stage
        )

    def _at(self, cut: str) -> int:
        """The call before which a stage or block begins."""
        if cut in self.cuts:
            return self.cuts[cut]
        hint = nearest(cut, self.cuts) or f"the stages are {either(self.stages)}"
        raise UserError(Problem("stage", cut, f"{type(self.backbone).__name__} can't be cut there; {hint}"))

    def _position(self, name: str) -> int:
        """The first call that a parameter, buffer or module takes part in.

        What no unit holds lies with the first unit of its sequence, or at the very bottom (the net's own, and what was never called):
        where that is wrong, a gradient reaches it from above a cut, and the cut is not offered.
        """
        root, _, path = name.partition(".")
        if root == HEAD:
            return self._end
        if root == AUXILIARY:  # with the unit that it listens to
            path = self._taps[path.partition(".")[0]].after if path else ""
            root = "backbone"
        if root not in ("backbone", "mean", "std", "whitening"):
            raise KeyError(f"{name} is no parameter, buffer or module of this chain")
        while path and path not in self._lowest:
            path = path.rpartition(".")[0]
        return self._lowest.get(path, 0)

    @contextmanager
    def _listening(self, first: int, last: int) -> Iterator[None]:
        """While it lasts, auxiliary classifiers that train hear their units, where those lie between two calls: the others are blank."""
        self._heard = []
        taps = [
            (tap, module)
            for tap, module in zip(self._taps.values(), self.auxiliary.values(), strict=True)
            if module.training and first <= self._lowest[tap.after] < last and any(p.requires_grad for p in module.parameters())
        ]
        known = units(self.backbone) if taps else {}
        hooks = [known[tap.after].register_forward_hook(partial(self._hear, tap, module)) for tap, module in taps]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hear(self, tap: Auxiliary, classifier: nn.Module, unit: nn.Module, args: tuple[Any, ...], left: Tensor) -> None:
        self._heard.append((tap.weight, classifier(left)))

    def _run(self, x: Tensor, first: int, last: int, blank: Callable[..., Tensor] = Tensor.new_empty) -> Tensor:
        """From the tensor that enters call `first` to the one that enters call `last`, or to the features."""
        if first == last:
            return x
        if first == 0 and last == self._end:
            return self.backbone(x)
        if first and x.shape[1:] != self._enters[first]:
            takes, given = ["b", *(self._enters[first] or ())], ["b", *x.shape[1:]]
            raise CutError(f"{self._units[first]} takes {takes} at the picture size that this chain was built for, not {given}")
        times: Counter[str] = Counter()
        entered, left = first == 0, last == self._end

        def call(unit: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal entered, left
            watched = self._calls.get(unit, ())[times[unit] :]
            times[unit] += 1
            if not watched or first < watched[0] < last:  # what was not watched is called in train mode only: left as it is
                return forward(*args, **kwargs)
            if watched[0] == first - 1:
                return x.clone()  # what enters the cut may also go around the unit that stands there
            if watched[0] < first:
                return tree_map_only(Tensor, partial(self._blank, x=x, blank=blank), self._left[watched[0]])
            if watched[0] == last:
                left = True
                raise _Reached(args[0])
            entered = True  # a copy enters: a unit may write into its input, and x may be a row of a cache or an inference tensor
            return forward(*((x.clone(), *args[1:]) if first else args), **kwargs)

        with intercepted(self.backbone, call):
            try:
                y = self.backbone(x.new_empty(len(x), *self.enters) if first else x)
            except _Reached as reached:
                y = reached.tensor
        if not (entered and left):
            raise CutError(f"{type(self.backbone).__name__} does not call {self._units[first]} as it did when it was watched, in eval mode")
        return y

    def _blank(self, left: Tensor, x: Tensor, blank: Callable[..., Tensor]) -> Tensor:
        """A tensor in place of one that is not computed: the shape it had, for as many pictures as x has."""
        scales = left.dim() > 0 and len(left) % self._rows == 0
        shape = (len(left) // self._rows * len(x), *left.shape[1:]) if scales else tuple(left.shape)
        return blank(x, shape) if left.is_floating_point() else torch.zeros(shape, dtype=left.dtype, device=x.device)

    def _proven(self, cuts: list[int], sample: Tensor) -> list[int]:
        """Those cuts that hold, for about the price of two forward passes on one picture.

        A cut is proved from the top down, each only as far as the next one that holds: what lies above that one depends on nothing below
        it, so it can't depend on what lies below this one. The batch size differs from the one that was watched.
        """
        rows = 2 if self._rows == 1 else 1
        draws = torch.Generator().manual_seed(0)  # leaves the global stream alone
        x = torch.randn(rows, *self.enters, generator=draws).to(sample) if len(self.mean) else sample[-rows:]
        calls, goal = watch(self.backbone, x)
        if [call.unit for call in calls] != self._units:
            return []
        held: list[int] = []
        last = self._end
        for cut in sorted({*cuts} & {*candidates(calls, rows)}, reverse=True):
            entered = calls[cut].entered
            if entered is not None and self._fault(cut, last, entered, goal) is None:
                held, last, goal = [cut, *held], cut, entered
        return held

    def _fault(self, cut: int, last: int, x: Tensor, goal: Tensor) -> str | None:
        """Why the net can't be run from x at `cut` to `goal` at call `last`; None: it can."""
        floats = [(name, p) for name, p in self.backbone.named_parameters("backbone") if p.is_floating_point()]
        below = {name: p for name, p in floats if self._position(name) < cut}
        wanted = [p.requires_grad for _, p in floats]
        try:
            with evaluating(self.backbone), torch.inference_mode(False), torch.enable_grad():
                for _, parameter in floats:
                    parameter.requires_grad_(True)
                y = self._run(x.detach(), cut, last, lambda like, shape: like.new_full(shape, torch.nan))
                if y.shape != goal.shape or not (y - goal).abs().max() <= TOLERANCE * goal.abs().max():
                    return "the part above gives another answer than the whole net"
                reached = torch.autograd.grad(y.sum(), list(below.values()), allow_unused=True) if below and y.requires_grad else ()
        except Exception as error:  # whatever a library's net raises on the way, it can't be run from here
            return f"{type(error).__name__}: {error}"
        finally:
            for (_, parameter), want in zip(floats, wanted, strict=True):
                parameter.requires_grad_(want)
        leaks = [name for name, gradient in zip(below, reached, strict=False) if gradient is not None]
        return f"a gradient reaches {leaks[0]}, which lies below" if leaks else None


def _published(table: Mapping[str, tuple[str, ...]], called: list[str]) -> list[tuple[str, int]]:
    """A table's stages and their first calls. Raises CutError where the table is not in the order of execution."""
    starts = []
    for stage, prefixes in table.items():
        own = [i for i, unit in enumerate(called) if any(unit == prefix or unit.startswith(f"{prefix}.") for prefix in prefixes)]
        if not own:
            raise CutError(f"stage {stage} is made of {either(prefixes)}, but the net calls none of them; it calls {', '.join(called)}")
        starts.append((stage, min(own)))
    if [start for _, start in starts] != sorted({start for _, start in starts}):
        raise CutError(f"stages {', '.join(table)} are not in the order in which the net calls them: {', '.join(called)}")
    return starts


def _found(net: nn.Module, called: list[str], names: list[str]) -> list[tuple[str, int]]:
    """The stages and first calls of a net without a table: a stem up to the trunk, then one stage for each unit with weights.

    The trunk begins with the first sequence; but a sequence that runs before all else and is followed by others is the stem itself.
    A unit without a matrix or kernel (a norm, a pool) joins the stage before it.
    """
    known = units(net)
    heavy = [i for i, unit in enumerate(called) if any(parameter.dim() > 1 for parameter in known[unit].parameters())]
    begins = sorted({called[i].partition(".")[0]: i for i in reversed(heavy) if "." in called[i]}.values())
    if len(begins) > 1 and begins[0] == heavy[0]:
        begins = begins[1:]
    trunk = begins[0] if begins else 0
    return [*([("stem", 0)] if trunk else []), *((names[i], i) for i in heavy if i >= trunk)]
