"""Many heads of one kind as one net: stacked parameters [h, ...], each with a rate, a decay and a dropout of its own.

Shapes: h heads, u different inputs among them, b rows of a batch, f features, k outputs. Nothing of one head enters another: a sum of
their losses has for each head's parameters the gradient of its own loss, so that a head that diverges does so alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim import Optimizer

from regraft.classifiers import Cosine
from regraft.optim import SGD, Adam, AdamW, OptimizerSpec
from regraft.streams import Dropout

Masks = Callable[[int, Tensor], Tensor]  # (which dropout of a head, its input) -> what to multiply it by


class Stack(nn.Module):
    """Heads of the same layers. Raises ValueError for a head that holds a layer which can't be stacked."""

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = [type(layer) for layer in heads[0].children()]
        strange = [layer for layer in self.layers if layer not in LAYERS]
        if (
            not isinstance(heads[0], nn.Sequential)
            or strange
            or any([type(each) for each in head.children()] != self.layers for head in heads)
        ):
            raise ValueError(f"no stack of {type(heads[0]).__name__} with {[layer.__name__ for layer in self.layers]}")
        self.places = [name for name, _ in heads[0].named_children()]
        names = [name for name, _ in heads[0].named_parameters()]
        states = [head.state_dict() for head in heads]
        self.tensors = nn.ParameterDict({_inner(name): torch.stack([state[name] for state in states]) for name in names})  # [h, ...]
        self.fixed = {name: torch.stack([state[name] for state in states]) for name in states[0] if name not in names}

    def __len__(self) -> int:
        """h"""
        return len(next(iter(self.tensors.values())))

    def decayed(self) -> dict[bool, list[nn.Parameter]]:
        """The parameters that weight decay is for (those of more than one dimension in each head), and the others."""
        return {wanted: [p for p in self.tensors.values() if (p.dim() > 2) == wanted] for wanted in (True, False)}

    def forward(self, x: Tensor, which: Sequence[int] = (), masks: Masks | None = None) -> Tensor:
        """[u, b, f] -> [h, b, k]. `which` [h]: which of the u different inputs is a head's, in ascending order; (): they share the one
        there is. `masks`: of the dropouts; None: there are none, as in evaluation"""
        which, dropout = list(which) or [0] * len(self), 0
        for place, layer in zip(self.places, self.layers, strict=True):
            if layer is Dropout:
                x = x if masks is None else x * masks(dropout, x)
                dropout += 1
            else:
                x = LAYERS[layer](x, which, {name: self._tensor(f"{place}.{name}") for name in ("weight", "bias", "scale")})
            which = list(range(len(self))) if len(x) == len(self) else which
        return x

    def state(self, head: int) -> dict[str, Tensor]:
        """One head's state dict, copied."""
        own = {_outer(name): tensor[head].detach().cpu().clone() for name, tensor in self.tensors.items()}
        return own | {name: tensor[head].clone() for name, tensor in self.fixed.items()}

    def put(self, head: int, state: Mapping[str, Tensor]) -> None:
        """One head's state dict in its place."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor[head] = state[_outer(name)]

    def keep(self, heads: Tensor) -> None:
        """[n] int64: these heads stay, in this order."""
        for tensor in self.tensors.values():
            tensor.data = tensor.data[heads]
            tensor.grad = None
        self.fixed = {name: tensor[heads] for name, tensor in self.fixed.items()}

    def _tensor(self, name: str) -> Tensor | None:
        if _inner(name) in self.tensors:
            return self.tensors[_inner(name)]
        return self.fixed[name].to(next(self.parameters()).device) if name in self.fixed else None


def _inner(name: str) -> str:
    """A parameter's name without dots, which torch wants."""
    return name.replace(".", "/")


def _outer(name: str) -> str:
    return name.replace("/", ".")


def _linear(x: Tensor, which: Sequence[int], of: Mapping[str, Any]) -> Tensor:
    """[u, b, f] with weight [h, k, f] and bias [h, k] -> [h, b, k]"""
    weight, bias = of["weight"], of["bias"]
    if len(x) == len(weight):
        return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
    parts = []
    for input, heads in zip(x, _shares(which), strict=True):  # one product for all heads of an input
        w, b = weight[heads], bias[heads]
        parts.append(nn.functional.linear(input, w.flatten(0, 1), b.flatten()).unflatten(1, w.shape[:2]).transpose(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _cosine(x: Tensor, which: Sequence[int], of: Mapping[str, Any]) -> Tensor:
    """[u, b, f] with weight [h, k, f] and scale [h] -> [h, b, k]"""
    weight, x = normalize(of["weight"], dim=-1), normalize(x, dim=-1)
    x = x[torch.tensor(which, device=x.device)] if len(x) != len(weight) else x
    return of["scale"][:, None, None] * torch.matmul(x, weight.transpose(1, 2))


def _shares(which: Sequence[int]) -> list[slice]:
    """[0, 0, 1] -> [0:2, 2:3]: the heads of each input"""
    counts = Counter(which)
    ends = list(accumulate(counts[number] for number in sorted(counts)))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


LAYERS: dict[type[nn.Module], Callable[[Tensor, Sequence[int], Mapping[str, Any]], Tensor]] = {
    Dropout: lambda x, which, of: x,
    nn.Linear: _linear,
    nn.ReLU: lambda x, which, of: x.relu(),
    Cosine: _cosine,
}


class StackedOptimizer(Optimizer):
    """One optimizer's rule with a rate [h], a decay [h] and a count of steps [h] for each head of a stack.

    The same arithmetic, in the same order, as torch's own of the same name; other optimizers have no rule here.
    """

    def __init__(self, stack: Stack, spec: OptimizerSpec, rates: Tensor, decays: Tensor) -> None:
        """`spec`: the rule and what all heads share of it; `rates` and `decays` [h]: what its lr and weight_decay are for each head.
        Raises KeyError for a rule that is not there."""
        self.rule, self.spec = RULES[type(spec)], spec
        self.rates, self.decays = rates, decays
        self.steps = torch.zeros(len(stack))  # [h]: that each head has made
        groups = [{"params": parameters, "decays": decayed} for decayed, parameters in stack.decayed().items() if parameters]
        super().__init__(groups, {"lr": 0.0})  # a schedule's place; the rates are `rates`
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {name: torch.zeros_like(parameter) for name in MOMENTS[type(spec)]}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        if closure is not None:
            with torch.enable_grad():
                answer = closure()
        else:
            answer = None
        self.steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                shape = (-1, *[1] * (parameter.dim() - 1))  # [h, 1, ...]
                decay = self.decays.to(parameter).view(shape) if group["decays"] else 0.0
                rate, step = self.rates.to(parameter).view(shape), self.steps.double().to(parameter.device).view(shape)
                self.rule(parameter, parameter.grad, self.state[parameter], rate, decay, step, self.spec)
        return answer

    def state_of(self, stack: Stack, head: int) -> dict[str, dict[str, Tensor]]:
        """One head's moments, copied: moment -> parameter -> tensor"""
        moments = MOMENTS[type(self.spec)]
        return {m: {_outer(name): self.state[p][m][head].cpu().clone() for name, p in stack.tensors.items()} for m in moments}

    def put(self, stack: Stack, head: int, state: Mapping[str, Mapping[str, Tensor]], steps: int) -> None:
        """One head's moments and steps in their place."""
        self.steps[head] = steps
        for moment, tensors in state.items():
            for name, parameter in stack.tensors.items():
                self.state[parameter][moment][head] = tensors[_outer(name)]

    def keep(self, heads: Tensor) -> None:
        """[n] int64: these heads stay, in this order."""
        self.rates, self.decays, self.steps = self.rates[heads], self.decays[heads], self.steps[heads]
        for state in self.state.values():
            for name, tensor in state.items():
                state[name] = tensor[heads]


def clip(parameters: Sequence[nn.Parameter], norm: float) -> None:
    """Each head's gradients are scaled down to a norm of their own, as torch.nn.utils.clip_grad_norm_ does for one. Parameters [h, ...]"""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in gradients])  # [parameters, h]
    factor = (norm / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)  # [h]
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))


State = dict[str, Tensor]


def _sgd(p: Tensor, g: Tensor, state: State, rate: Tensor, decay: Any, step: Tensor, spec: Any) -> None:
    """Sutskever et al. 2013, in torch's form: the velocity holds gradients, and the rate multiplies what is applied."""
    g = g + decay * p
    if spec.momentum:
        velocity = state["velocity"].mul_(spec.momentum).add_(g)
        g = g + spec.momentum * velocity if spec.nesterov else velocity
    p.sub_(rate * g)


def _adam(p: Tensor, g: Tensor, state: State, rate: Tensor, decay: Any, step: Tensor, spec: Any) -> None:
    """Kingma and Ba 2015, algorithm 1; eps as torch's."""
    _moments(p, g + decay * p, state, rate, step, spec)


def _adamw(p: Tensor, g: Tensor, state: State, rate: Tensor, decay: Any, step: Tensor, spec: Any) -> None:
    """Loshchilov and Hutter 2019, algorithm 2."""
    p.mul_(1 - rate * decay)
    _moments(p, g, state, rate, step, spec)


def _moments(p: Tensor, g: Tensor, state: State, rate: Tensor, step: Tensor, spec: Any) -> None:
    first, second = spec.betas
    mean = state["mean"].lerp_(g, 1 - first)
    square = state["square"].mul_(second).addcmul_(g, g, value=1 - second)
    size = (rate.double() / (1 - first**step)).to(p)
    root = (1 - second**step).sqrt().to(p)
    p.sub_(square.sqrt().div_(root).add_(1e-8).reciprocal_().mul_(mean).mul_(size))


RULES: dict[type[OptimizerSpec], Callable[..., None]] = {SGD: _sgd, Adam: _adam, AdamW: _adamw}
MOMENTS: dict[type[OptimizerSpec], tuple[str, ...]] = {SGD: ("velocity",), Adam: ("mean", "square"), AdamW: ("mean", "square")}
