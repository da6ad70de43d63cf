"""Low-rank adapters inside a chain: small products of matrices beside layers that stay as they are (LoRA: Hu et al. 2022, section 4.1).

peft puts them in and computes with them. A layer `x` becomes `x.base_layer` with `x.lora_A`, `x.lora_B` beside it; `bare` and `merged`
give a net's tensors under the names that they have without adapters.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from regraft.watching import evaluating

if TYPE_CHECKING:
    from regraft.chain import Chain

Layers = Literal["auto", "attention", "convolutions", "all"]
PREFIX = "lora_"  # of whatever peft puts beside a layer
INSIDE = "base_layer"  # the layer itself


def fitting(chain: Chain, layers: Layers, lowest: str | None, sample: Tensor) -> list[str]:
    """The names, within the backbone, of the layers that take adapters: linear ones and convolutions that are called as modules when
    the net runs on `sample` (prepared, as `Chain` takes it), from the stage or block `lowest` upward. Grouped convolutions (depthwise
    ones are) take none. `auto`: attention's where there are any, else the convolutions."""
    found = {name: module for name, module in chain.backbone.named_modules() if _takes(module)}
    called: set[str] = set()
    hooks = [
        module.register_forward_hook(lambda module, args, left, name=name: called.add(name))  # type: ignore[misc]
        for name, module in found.items()
    ]
    try:
        with evaluating(chain.backbone), torch.no_grad():
            chain.backbone(sample)
    finally:
        for hook in hooks:
            hook.remove()
    above = [name for name in found if name in called and (lowest is None or not chain.below(f"backbone.{name}", lowest))]
    attending = [name for name in above if _attends(chain.backbone, name)]
    convolving = [name for name in above if isinstance(found[name], nn.Conv2d)]
    return {"attention": attending, "convolutions": convolving, "all": above, "auto": attending or convolving}[layers]


def put(chain: Chain, names: Iterable[str], rank: int, alpha: int, dora: bool) -> None:
    """Adapters beside these layers of the backbone; the net's answers stay as they were. A is drawn from torch's global stream, B is 0.

    `dora`: a layer's weight is taken apart into direction and length, and the length trains too (Liu et al. 2024, section 4).
    """
    from peft import LoraConfig, inject_adapter_in_model

    # no dropout of peft's: it would draw from the global stream, and a run that is resumed or shared out would differ
    whole = "|".join(map(re.escape, names))  # an expression: of a list of names peft takes each for the end of any longer one
    config: Any = LoraConfig(r=rank, lora_alpha=alpha, use_dora=dora, target_modules=whole, lora_dropout=0.0)
    inject_adapter_in_model(config, chain.backbone)


def is_adapter(name: str) -> bool:
    """Whether a parameter or buffer belongs to an adapter, by its name."""
    return any(part.startswith(PREFIX) for part in name.split("."))


def bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the net below its adapters, under their own names."""
    return {name.replace(f".{INSIDE}.", "."): tensor for name, tensor in state.items() if not is_adapter(name)}


def merged(backbone: nn.Module) -> dict[str, Tensor]:
    """The tensors of a net without adapters that answers as this one does, under its own names."""
    if not any(is_adapter(name) for name in backbone.state_dict()):
        return dict(backbone.state_dict())
    from peft.tuners.tuners_utils import BaseTunerLayer

    net = copy.deepcopy(backbone)
    for layer in net.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
    return bare(net.state_dict())


def _takes(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _attends(net: nn.Module, name: str) -> bool:
    """Whether a layer lies in a module whose kind says that it attends."""
    parts = name.split(".")
    above = (type(net.get_submodule(".".join(parts[:depth]))).__name__.lower() for depth in range(len(parts)))
    return any("attention" in kind or "attn" in kind for kind in above)
