"""What a torchmetrics metric holds within an epoch, as it is kept in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_fabric.utilities import move_data_to_device
from torchmetrics import Metric


def plain(measure: Metric) -> dict[str, Any]:
    """Numbers and tensors, in memory."""

    def held(state: Any) -> Any:
        return [each.cpu() for each in state] if isinstance(state, list) else state.cpu().clone()

    return {"updates": measure._update_count, "states": {key: held(state) for key, state in measure.metric_state.items()}}


def put(measure: Metric, kept: Mapping[str, Any]) -> None:
    """Add what `plain` has told of a metric, of this rank or of another, to one that holds something or nothing."""
    states = {key: move_data_to_device(state, measure.device) for key, state in kept["states"].items()}
    first, measure._update_count = not measure._update_count, measure._update_count + kept["updates"]
    if first:
        vars(measure).update(states)
    else:
        measure._reduce_states(states)
