"""Heads that need no epochs: solved on a split's features, which pass by in batches; specs that differ in numbers share the work.

Shapes: n pictures, b of a batch, f features, o outputs. A choice (of a penalty, of k) is made on val, where the smoother of equals wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize, one_hot

from regraft.classifiers import Neighbours
from regraft.errors import Problem, UserError, either
from regraft.heads import KNN, SVM, Crossed, Forest, HeadSpec, Logistic, Majority, NearestMean, Ridge
from regraft.solvers import forest, svm
from regraft.solving import (
    NEVER,
    Batches,
    Candidate,
    Fitted,
    Given,
    Key,
    answers,
    best,
    counts,
    crossed,
    factor,
    linear,
    ordered,
    penalties,
    silence,
)

HELD = 2**27  # float32 values of a split that are kept in memory: 512 MiB; a larger one is read again for each pass
ROWS = 4096  # of a batch of what is kept
RIDGE = tuple(10 ** (step / 2) for step in range(8, -9, -1))  # `auto`, in units of the mean of X'X's diagonal
LOGISTIC = tuple(10.0**step for step in range(1, -7, -1))  # `auto`, in units of n times the features' mean variance
KS = (200, 100, 50, 20, 10, 5, 3, 1)  # `auto`


@torch.no_grad()
def fit(
    specs: Sequence[HeadSpec],
    train: Batches,
    val: Batches | None,
    features: int,
    outputs: int,
    kind: str,
    judge: Callable[[Tensor, Tensor], float],
    lower: bool,
    say: Callable[[str], None],
    groups: Tensor | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Fitted]:
    """One solved head for each spec; the specs are of one entry (all ridge, ...) and differ in their numbers.

    `judge(logits, truth)`: the monitored metric on val, of which less is better where `lower`. `groups` [pictures] int64: train pictures of
    one number never part in folds of train (None: each stands alone); each has equally many rows, one after the other. `seeds`: of each
    spec's run (None: 0). Raises UserError for truth that the head can't learn, a choice without val pictures to make it on, and features
    that are no finite numbers.
    """
    first = specs[0]
    if kind not in first.kinds:
        raise UserError(Problem("head", first.name, f"learns {either(first.kinds)}, not {kind}; another head would work"))
    if val is not None and not any(len(y) for _, y in val()):
        val = None
    numbers = seeds or [0] * len(specs)
    splits = (_held(_finite(train, first.name)), val and _held(_finite(val, first.name)))
    given, way = Given(*splits, features, outputs, kind, judge, lower, say, groups, numbers), WAYS[type(first)]
    folded = {i: spec for i, spec in enumerate(specs) if isinstance(spec, Crossed) and spec.folds and spec.several()}
    alone = [i for i in range(len(specs)) if i not in folded]
    found = {i: crossed(way, spec, given._replace(seeds=[numbers[i]])) for i, spec in folded.items()}
    together = way([specs[i] for i in alone], given._replace(seeds=[numbers[i] for i in alone])) if alone else []
    found |= dict(zip(alone, together, strict=True))
    return [found[i] for i in range(len(specs))]


def _ridge(specs: Sequence[Ridge], given: Given) -> list[Fitted]:
    """Least squares with a penalty on the weights, not on the intercept, in float64 (Hoerl and Kennard 1970).

    With centred X [n, f] and targets T [n, o], (X'X + penalty I)^-1 X'T is V (S + penalty)^-1 V'X'T for X'X = V S V'; for fewer pictures
    than features it is X'U (S + penalty)^-1 U'T for XX' = U S U'. Either way one decomposition serves every penalty.
    Targets: class: 1 for the picture's own, else 0; tags: 1 and -1; numbers: as they come.
    """
    n, mean = _means(given.train, given.features)
    level = sum((_targets(y, given).sum(0) for _, y in given.train()), torch.zeros(given.outputs, dtype=torch.float64)) / n

    def centred() -> Iterator[tuple[Tensor, Tensor]]:
        return ((x.double() - mean, _targets(y, given) - level) for x, y in given.train())

    if n <= given.features:
        x, t = (torch.cat(parts) for parts in zip(*centred(), strict=True))
        values, vectors = torch.linalg.eigh(x @ x.T)
        left, right = x.T @ vectors, vectors.T @ t  # [f, n], [n, o]
    else:
        xx = torch.zeros(given.features, given.features, dtype=torch.float64)
        xt = torch.zeros(given.features, given.outputs, dtype=torch.float64)
        for x, t in centred():
            xx.addmm_(x.T, x)
            xt.addmm_(x.T, t)
        values, left = torch.linalg.eigh(xx)
        right = left.T @ xt
    values = values.clamp(min=0)
    unit = float(values.sum()) / given.features or 1.0
    wanted = [[(penalty, spec.calibrate) for penalty in penalties(spec.penalty, RIDGE, unit)] for spec in specs]

    def made() -> Iterator[Candidate]:
        for penalty, calibrate in ordered(wanted):
            weight = ((left / (values + penalty)) @ right).T  # [o, f]
            bias = level - weight @ mean
            scale = factor(linear(weight, bias), given) if calibrate else 1.0
            module = linear(scale * weight, scale * bias)
            facts = {"penalty": penalty, "factor": scale, "pictures": n}
            yield Candidate((penalty, calibrate), module, facts, partial(answers, module, given))

    given.say(f"ridge: {n} pictures x {given.features} features, decomposed once for all penalties")
    return best("penalty", specs, wanted, made(), given)


def _logistic(specs: Sequence[Logistic], given: Given) -> list[Fitted]:
    """Cross-entropy + penalty / 2 |w|^2, the bias free, by L-BFGS (Liu and Nocedal 1989), on centred features divided by their deviation.

    Without `standardize` all features are divided by one number, so that the penalty is on the weights as they are. Weights are folded back
    at the end. Penalties go from strong to weak, each from the answer before.
    """
    n, mean = _means(given.train, given.features)
    squares = torch.zeros(given.features, dtype=torch.float64)
    seen = torch.zeros(given.outputs, dtype=torch.float64)  # pictures of each class, or that have each tag
    for x, y in given.train():
        squares += (x.double() - mean).square().sum(0)
        seen += counts(y, given)
    deviation = (squares / n).sqrt()
    constant = deviation <= 1e-6 * mean.abs()  # float32 can't tell such a change from its own rounding
    live = seen > 0 if given.kind == "class" else (seen > 0) & (seen < n)
    level = float(deviation.square().mean().sqrt()) or 1.0
    divisors = {True: deviation.masked_fill(constant, 1), False: torch.full_like(deviation, level)}
    units = {True: float(n), False: n * level**2}
    wanted = [
        [(each, spec.standardize, spec.max_iter, spec.tolerance) for each in penalties(spec.penalty, LOGISTIC, units[spec.standardize])]
        for spec in specs
    ]

    def scaled(divisor: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        places = live.cumsum(0) - 1  # of the classes that have pictures
        for x, y in given.train():
            x = ((x.double() - mean) / divisor).masked_fill(constant, 0)
            yield x.float(), places[y] if given.kind == "class" else y[:, live]

    def made() -> Iterator[Candidate]:
        for standardize in dict.fromkeys(spec.standardize for spec in specs):
            divisor = divisors[standardize]
            pieces = _held(partial(scaled, divisor))
            ends: dict[Key, np.ndarray] = {}  # where the penalty before has ended
            for key in (key for key in ordered(wanted) if key[1] == standardize):
                penalty, _, most, tolerance = key
                strength = penalty / n / (1.0 if standardize else level**2)
                at, steps = ends.get(key[1:], np.zeros(int(live.sum()) * (given.features + 1))), 0
                for dtype, slope in ((torch.float32, max(tolerance, ROUGH)), (torch.float64, tolerance)):  # the long way in the faster one
                    if steps < most:
                        options = {"maxiter": most - steps, "gtol": slope, **STEPS}
                        found = minimize(_loss, at, (pieces, strength, given, n, dtype), "L-BFGS-B", jac=True, options=options)
                        at, steps = found.x, steps + int(found.nit)
                ends[key[1:]] = at
                if not found.success:
                    given.say(f"logistic: penalty {penalty:.3g} has not converged in {steps} iterations; raise max_iter or tolerance")
                own = torch.from_numpy(at).view(-1, given.features + 1)
                weight = torch.zeros(given.outputs, given.features, dtype=torch.float64)
                bias = torch.zeros(given.outputs, dtype=torch.float64)
                weight[live] = own[:, :-1] / divisor
                bias[live] = own[:, -1] - weight[live] @ mean
                if given.kind == "class":
                    silence(weight, bias, live)
                else:
                    bias[~live] = NEVER * (1 - 2 * (seen > 0).double())[~live]
                module = linear(weight, bias)
                facts = {"penalty": penalty, "iterations": steps, "converged": bool(found.success), "pictures": n}
                yield Candidate(key, module, facts, partial(answers, module, given))

    return best("penalty", specs, wanted, made(), given)


ROUGH = 1e-4  # slope of the mean loss down to which float32 is good enough
STEPS = {"ftol": 64 * np.finfo(float).eps, "maxls": 50, "maxfun": 10**9}  # only the slopes say when it is done


def _loss(at: np.ndarray, pieces: Batches, strength: float, given: Given, n: int, dtype: torch.dtype) -> tuple[float, np.ndarray]:
    """The mean loss with its penalty, and its slopes; `at`: for each class its f weights and its bias, [o (f + 1)]"""
    both = torch.from_numpy(at).view(-1, given.features + 1)
    weight, bias = both[:, :-1], both[:, -1]
    slope, value = torch.zeros_like(both), 0.0
    for x, y in pieces():
        x = x.to(dtype)
        logits = (x @ weight.T.to(dtype)).double() + bias  # [b, o]
        if given.kind == "class":
            value += float(cross_entropy(logits, y, reduction="sum"))
            errors = logits.softmax(1).scatter_add_(1, y[:, None], logits.new_full((len(y), 1), -1))
        else:
            value += float(binary_cross_entropy_with_logits(logits, y.double(), reduction="sum"))
            errors = logits.sigmoid() - y
        slope[:, :-1] += errors.T.to(dtype) @ x
        slope[:, -1] += errors.sum(0)
    slope /= n
    slope[:, :-1] += strength * weight
    return value / n + strength / 2 * float(weight.square().sum()), slope.flatten().numpy()


def _knn(specs: Sequence[KNN], given: Given) -> list[Fitted]:
    """One bank and one sort of distances for each metric; every k is the beginning of the same list."""
    truth = torch.cat([y for _, y in given.train()])
    n, wanted = len(truth), []
    for spec in specs:
        several = KS if spec.k == "auto" else sorted(spec.k, reverse=True) if isinstance(spec.k, list) else [spec.k]
        wanted.append([(k, spec.metric, spec.temperature) for k in dict.fromkeys(min(k, n) for k in several)])

    def bank(metric: str) -> tuple[Neighbours, list[tuple[Tensor, Tensor]]]:
        """With what is nearest to val's pictures, where something is to be chosen there."""
        x, first, module = torch.empty(n, given.features), 0, Neighbours(given.features, given.outputs, metric, None)
        for part, _ in given.train():
            x[first : first + len(part)] = part
            first += len(part)
        module.take(x, truth, given.kind)
        most = max(key[0] for keys in wanted for key in keys if key[1] == metric)
        chosen = any(len(keys) > 1 and keys[0][1] == metric for keys in wanted)
        return module, [module.near(x, most) for x, _ in given.val()] if given.val and chosen else []

    def made() -> Iterator[Candidate]:
        for metric in dict.fromkeys(spec.metric for spec in specs):
            shared, near = bank(metric)
            for key in ordered([keys for keys in wanted if keys[0][1] == metric]):
                k, _, temperature = key
                module = Neighbours(given.features, given.outputs, metric, temperature).eval()
                module.bank, module.labels, module.values, module.kind = shared.bank, shared.labels, shared.values, shared.kind
                module.k = torch.tensor(k)

                yield Candidate(key, module, {"k": k, "pictures": n}, partial(_votes, module, near, k))

    return best("k", specs, wanted, made(), given)


def _votes(module: Neighbours, near: Sequence[tuple[Tensor, Tensor]], k: int) -> Tensor:
    return torch.cat([module.votes(similarity, rows, k) for similarity, rows in near])


def _nearest_mean(specs: Sequence[NearestMean], given: Given) -> list[Fitted]:
    """logit = -|x - mean|^2 + |x|^2, or the cosine of x and the mean of the class's directions (Mensink et al. 2013, section 3.2).

    Uncalibrated, their softmax is what a normal distribution of variance 1/2 around each mean says (Bishop 2006, section 4.2).
    """

    def made() -> Iterator[Candidate]:
        for metric, calibrate in dict.fromkeys(key for keys in wanted for key in keys):
            cosine = metric == "cosine"
            means = torch.zeros(given.outputs, given.features, dtype=torch.float64)
            seen = torch.zeros(given.outputs, dtype=torch.float64)
            for x, y in given.train():
                means.index_add_(0, y, normalize(x.double()) if cosine else x.double())
                seen += counts(y, given)
            means /= seen.clamp(min=1)[:, None]
            weight, bias = (normalize(means), torch.zeros_like(seen)) if cosine else (2 * means, -means.square().sum(1))
            scale = factor(linear(weight, bias, cosine), given, seen > 0) if calibrate else 1.0
            weight, bias = scale * weight, scale * bias
            silence(weight, bias, seen > 0)
            module = linear(weight, bias, cosine)
            facts = {"factor": scale, "pictures": int(seen.sum())}
            yield Candidate((metric, calibrate), module, facts, partial(answers, module, given))

    wanted = [[(spec.metric, spec.calibrate)] for spec in specs]
    return best("metric", specs, wanted, made(), given)


def _majority(specs: Sequence[Majority], given: Given) -> list[Fitted]:
    """logit = the logarithm of the class's part of train, whatever the features."""
    seen = sum((counts(y, given) for _, y in given.train()), torch.zeros(given.outputs, dtype=torch.float64))
    weight, bias = torch.zeros(given.outputs, given.features, dtype=torch.float64), (seen / seen.sum()).clamp(min=1e-300).log()
    silence(weight, bias, seen > 0)
    module = linear(weight, bias)
    made = Candidate(("train",), module, {"pictures": int(seen.sum())}, partial(answers, module, given))
    return best("majority", specs, [[("train",)] for _ in specs], iter([made]), given)


def _means(batches: Batches, features: int) -> tuple[int, Tensor]:
    """How many pictures there are, and their mean [f] in float64."""
    n, total = 0, torch.zeros(features, dtype=torch.float64)
    for x, _ in batches():
        n += len(x)
        total += x.double().sum(0)
    return n, total / n


def _targets(y: Tensor, given: Given) -> Tensor:
    """Truth as numbers to be met: [b, o] float64"""
    if given.kind == "class":
        return one_hot(y, given.outputs).double()
    return 2 * y.double() - 1 if given.kind == "tags" else y.double()


def _finite(batches: Batches, name: str) -> Batches:
    """The same, in float32. Raises UserError for a value that is infinite or no number."""

    def checked() -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in batches():
            if not x.isfinite().all():
                remedy = "the features that reach it are not all finite numbers; other weights, or cache.dtype=float32, may mend it"
                raise UserError(Problem("head", name, remedy))
            yield x.float(), y

    return checked


def _held(batches: Batches) -> Batches:
    """The same, read once and kept where it fits `HELD`, in batches of `ROWS`; else read anew for each pass."""
    kept: list[tuple[Tensor, Tensor]] = []
    for x, y in batches():
        kept.append((x, y))
        if sum(x.numel() for x, _ in kept) > HELD:
            return batches
    x, y = (torch.cat(parts) for parts in zip(*kept, strict=True))
    pieces = list(zip(x.split(ROWS), y.split(ROWS), strict=True))
    return lambda: pieces


WAYS: dict[Any, Callable[..., list[Fitted]]] = {
    Ridge: _ridge,
    Logistic: _logistic,
    KNN: _knn,
    NearestMean: _nearest_mean,
    Majority: _majority,
    SVM: svm,
    Forest: forest,
}
