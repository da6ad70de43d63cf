"""Linear support vector machines and random forests, kept as tensors: nothing but numbers is read back.

Shapes: n train pictures, f features, o outputs. All of train is held in memory, twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import one_hot

from regraft.heads import SVM, Forest
from regraft.solving import NEVER, Candidate, Fitted, Given, answers, best, factor, linear, ordered, penalties, silence, whole
from regraft.streams import generator
from regraft.trees import KINDS, Trees

PENALTIES = tuple(10 ** (step / 2) for step in range(6, -5, -1))  # `auto`, in units of the number of features
DEPTHS = (2, 4, 8, 16, 32)  # `auto`
DEEPEST = 2**31 - 1  # steps that no tree has


def svm(specs: Sequence[SVM], given: Given) -> list[Fitted]:
    """penalty / 2 |w|^2 + the summed squared hinge losses of each output, the bias as one weight more: what LIBLINEAR minimises too (Fan
    et al. 2008, section 2), here by L-BFGS for all outputs at once, from strong penalties to weak, each from the answer before.

    Features are centred and divided by their deviation, and the weights folded back at the end. Where there are fewer pictures than
    features, it is solved in the pictures' own span: the penalty leaves nothing outside of it.
    """
    x, y = whole(given.train)
    x = x.double()
    n, mean, deviation = len(x), x.mean(0), x.std(0, correction=0)
    constant = deviation <= 1e-6 * mean.abs()  # float32 can't tell such a change from its own rounding
    divisor = deviation.masked_fill(constant, 1)
    x = ((x - mean) / divisor).masked_fill(constant, 0)
    span = torch.linalg.qr(x.T).Q if n < given.features else None  # [f, n]
    rows = x if span is None else x @ span
    truth = one_hot(y, given.outputs) if given.kind == "class" else (y > 0).long()  # [n, o]
    seen = truth.sum(0)
    live = (seen > 0) & (seen < n)
    signs = (2 * truth[:, live] - 1).double()  # [n, outputs that are live]
    wanted = [[(penalty, spec.calibrate) for penalty in penalties(spec.penalty, PENALTIES, given.features)] for spec in specs]

    def made() -> Iterator[Candidate]:
        at = np.zeros(int(live.sum()) * (rows.shape[1] + 1))  # where the penalty before has ended
        for penalty in dict.fromkeys(key[0] for key in ordered(wanted)):
            found = minimize(_hinge, at, (rows, signs, penalty), "L-BFGS-B", jac=True, options=STEPS) if at.size else None
            at, converged = (at, True) if found is None else (found.x, bool(found.success))
            if not converged:
                given.say(f"svm: penalty {penalty:.3g} has not converged in {STEPS['maxiter']} iterations; a larger one would")
            own = torch.from_numpy(at).view(-1, rows.shape[1] + 1)
            weight = torch.zeros(given.outputs, given.features, dtype=torch.float64)
            bias = torch.zeros(given.outputs, dtype=torch.float64)
            weight[live] = (own[:, :-1] if span is None else own[:, :-1] @ span.T) / divisor
            bias[live] = own[:, -1] - weight[live] @ mean
            for calibrate in dict.fromkeys(key[1] for keys in wanted for key in keys if key[0] == penalty):
                scale = factor(linear(weight, bias), given, seen > 0 if given.kind == "class" else None) if calibrate else 1.0
                scaled, shift = scale * weight, scale * bias
                if given.kind == "class":
                    silence(scaled, shift, seen > 0)
                else:
                    shift[~live] = NEVER * (1 - 2 * (seen > 0).double())[~live]
                module = linear(scaled, shift)
                facts = {"penalty": penalty, "factor": scale, "converged": converged, "pictures": n}
                yield Candidate((penalty, calibrate), module, facts, partial(answers, module, given))

    return best("penalty", specs, wanted, made(), given)


STEPS = {"maxiter": 5000, "maxfun": 10**9, "gtol": 1e-6, "ftol": 64 * np.finfo(float).eps, "maxls": 50}


def _hinge(at: np.ndarray, rows: Tensor, signs: Tensor, penalty: float) -> tuple[float, np.ndarray]:
    """The mean loss of a picture with its part of the penalty, and its slopes; `at`: each output's weights and its bias, [o (f + 1)];
    rows [n, f], signs [n, o] of 1 and -1"""
    both = torch.from_numpy(at).view(signs.shape[1], -1)
    short = (1 - signs * (rows @ both[:, :-1].T + both[:, -1])).clamp(min=0)  # by how much each margin is missed
    pull = -2 * signs * short
    slope = torch.cat([pull.T @ rows, pull.sum(0)[:, None]], 1) + penalty * both
    value = short.square().sum() + penalty / 2 * both.square().sum()
    return float(value) / len(rows), (slope / len(rows)).flatten().numpy()


def forest(specs: Sequence[Forest], given: Given) -> list[Fitted]:
    """Trees that grow without bound, drawn from the run's seed; each depth that is asked for is the same trees, cut off."""
    x, y = whole(given.train)
    wanted = [[(depth, spec.trees, spec.leaf, seed) for depth in _depths(spec)] for spec, seed in zip(specs, given.seeds, strict=True)]

    def made() -> Iterator[Candidate]:
        for which in dict.fromkeys(key[1:] for keys in wanted for key in keys):
            grown = _grown(x.numpy(), y, *which, given)
            for depth in sorted({key[0] for keys in wanted for key in keys if key[1:] == which}, key=lambda depth: depth or DEEPEST):
                module = _cut(grown, depth, given)
                facts = {"depth": depth, "trees": which[0], "nodes": len(module.feature), "pictures": len(x)}
                yield Candidate((depth, *which), module, facts, partial(answers, module, given))

    return best("depth", specs, wanted, made(), given)


def _depths(spec: Forest) -> list[int | None]:
    """The shallowest first."""
    several = list(DEPTHS) if isinstance(spec.depth, str) else spec.depth if isinstance(spec.depth, list) else [spec.depth]
    return sorted(several, key=lambda depth: depth or DEEPEST)


def _grown(x: np.ndarray, y: Tensor, trees: int, leaf: int, seed: int, given: Given) -> Any:
    """scikit-learn's forest; a tag's share is the mean of its zeros and ones, whose variance is half their Gini impurity."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    kind = RandomForestClassifier if given.kind == "class" else RandomForestRegressor
    start = generator(seed, "forest").initial_seed() % 2**32
    grown = kind(trees, min_samples_leaf=leaf, max_features="sqrt", random_state=start, n_jobs=torch.get_num_threads())
    truth = y.numpy() if given.kind == "class" else y.double().numpy()
    return grown.fit(x, truth.ravel() if truth.shape[1:] == (1,) else truth)


def _cut(grown: Any, depth: int | None, given: Given) -> Trees:
    """scikit-learn's trees as tensors, without the nodes below a depth."""
    module = Trees(given.features, given.outputs)
    columns = torch.from_numpy(grown.classes_).long() if given.kind == "class" else torch.arange(given.outputs)
    parts: dict[str, list[Tensor]] = {name: [] for name in ("root", "feature", "threshold", "branch", "value")}
    first, deepest = 0, 0
    for each in grown.estimators_:
        tree = each.tree_
        children = np.stack([tree.children_left, tree.children_right], 1)  # [n, 2], -1 of a leaf; a child lies behind its parent
        level = np.zeros(tree.node_count, np.int64)
        for node in np.flatnonzero(children[:, 0] >= 0):
            level[children[node]] = level[node] + 1
        kept = level <= (DEEPEST if depth is None else depth)
        place = np.cumsum(kept) - 1  # of what is kept, among what is kept
        leaf = (children[:, 0] < 0) | (level == (DEEPEST if depth is None else depth))
        own = np.where(leaf[:, None], place[:, None], place[children])[kept]
        value = torch.zeros(int(kept.sum()), given.outputs)
        value[:, columns] = torch.from_numpy(tree.value[kept].reshape(len(value), -1)).float()
        parts["root"].append(torch.tensor([first]))
        parts["feature"].append(torch.from_numpy(np.where(leaf, 0, tree.feature)[kept]).long())
        parts["threshold"].append(torch.from_numpy(np.where(leaf, 0.0, tree.threshold)[kept]))
        parts["branch"].append(torch.from_numpy(own + first))
        parts["value"].append(value)
        first, deepest = first + len(value), max(deepest, int(level[kept].max()))
    for name, several in parts.items():
        setattr(module, name, torch.cat(several))
    module.importance = torch.from_numpy(grown.feature_importances_).float()
    module.depth, module.kind = torch.tensor(deepest), torch.tensor(KINDS.index(given.kind))
    return module.eval()
