"""What a run's machines have learnt, drawn beside its other pictures: the filters of the lowest, and what all of them dream."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from regraft.models import dbn
from regraft.report import canvas, dreams

if TYPE_CHECKING:
    from regraft.chain import Chain

SAMPLES, STEPS = 60, 1000  # dreams on a sheet, and Gibbs steps before each


def write(chain: Chain, filters: Path, dreamt: Path, seed: int, tuned: bool) -> None:
    """Both pictures, as PNG, of a chain of machines whose lowest sees pictures; of another chain none. `tuned`: the task came last."""
    machines = dbn.machines(chain)
    if not machines or not len(chain.mean):
        return
    weights = machines[0].weight.detach().cpu()  # [h, s * s]
    side = math.isqrt(weights.shape[1])
    canvas.save(dreams.filters(weights.view(-1, side, side).numpy()), filters)
    canvas.save(dreams.samples(dbn.dream(chain, SAMPLES, STEPS, seed).cpu().numpy(), STEPS, tuned), dreamt)
