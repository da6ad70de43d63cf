"""Any net that timm lists. What is asked before a run (names, tags) is read from timm's sources: importing timm means importing torch."""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.errors import Problem, UserError, either, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from regraft.chain import Backbone
    from regraft.models import Published


@cache
def architectures() -> dict[str, Path]:
    """Every name that timm registers, and the file that registers it."""
    found = find_spec("timm")
    roots = (found.submodule_search_locations if found else None) or []
    files = sorted(file for root in roots for file in Path(root, "models").glob("*.py"))
    return {name: file for file in files for name in re.findall(r"^@register_model\s+def (\w+)\(", file.read_text("utf-8"), re.MULTILINE)}


@cache
def tags(arch: str) -> dict[str, bool]:
    """The tags of a net in timm's order, and whether weights are published for each; empty where the source doesn't spell them out."""
    found = {}
    for node in ast.walk(ast.parse(architectures()[arch].read_text("utf-8"))):
        for key, value in zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ():
            if isinstance(key, ast.Constant) and isinstance(key.value, str) and key.value.partition(".")[0] == arch:
                found[key.value.partition(".")[2]] = _has_source(value)
    return found


def _has_source(value: ast.expr) -> bool:
    """Whether a tag's entry, `_cfg(url=..., hf_hub_id=...)` or a dict, says where weights are."""
    if isinstance(value, ast.Dict):
        given = {key.value: item for key, item in zip(value.keys, value.values, strict=True) if isinstance(key, ast.Constant)}
    elif isinstance(value, ast.Call):
        given = dict(enumerate(value.args)) | {keyword.arg: keyword.value for keyword in value.keywords}
        if ast.unparse(value.func).endswith("_radio_cfg"):  # names the source inside
            return True
    else:
        return False
    return any(bool(getattr(given[key], "value", True)) for key in (0, "url", "file", "hf_hub_id") if key in given)


def unknown(arch: str) -> str | None:
    """Why timm has no such net or tag, and what would work; None: it has."""
    name, _, tag = arch.partition(".")
    if name not in architectures():
        hint = nearest(name, architectures()) or f"the {len(architectures())} names are listed by timm.list_models()"
        return f"timm has no such net; {hint}"
    known = [known.strip("*") for known in tags(name) if known]
    if tag and known and tag not in known:
        return f"{name} has no tag {tag}; {nearest(tag, known) or f'its tags are {either(known)}'}"
    return None


def published(arch: str) -> str | None:
    """`arch.tag` of the weights that timm loads for this name; None: it has none.

    Without a tag: those without one, else the one that is starred, else the first (timm.models._registry.generate_default_cfgs).
    """
    name, _, tag = arch.partition(".")
    listed = tags(name)
    if tag or not listed:
        return arch if not listed or listed.get(tag, listed.get(f"{tag}*")) else None
    having = [known for known, has in listed.items() if has]
    ranked = sorted(having, key=lambda known: (known != "", not known.endswith("*")))
    return f"{name}.{ranked[0]}".rstrip(".*") if ranked else None


def build(arch: str, size: int) -> Backbone:
    """[b, 3, size, size] -> [b, f], with random weights. Raises UserError where the net does not take pictures of this size."""
    from regraft.chain import Backbone

    net = _create(arch, size, pretrained=False)
    config: Any = net.pretrained_cfg
    smallest = size if config["fixed_input_size"] else (config.get("min_input_size") or (3, 32, 32))[-1]  # 32: the stride of most nets
    classifier = (classifiers(net) or ("",))[0]
    return Backbone(net, None, classifier, tuple(config["mean"]), tuple(config["std"]), channels=config["input_size"][0], least=smallest)


def fetch(arch: str, backbone: Backbone, published: Published) -> dict[str, Tensor]:
    """The published weights with their classifier, renamed and resampled by timm itself for this net.

    Raises the hub client's errors without a network.
    """
    import torch
    from huggingface_hub import HfApi

    if published.path() is None:
        HfApi().model_info(published.identity, timeout=10)  # asked first: without a network the download itself tries for 45 s
    with torch.random.fork_rng(devices=[]):
        # a net of fixed size has it as its least
        state = _create(arch, backbone.least, pretrained=True, classes=None).state_dict()
    own = backbone.module.state_dict()
    linear = classifier(state, backbone) is not None
    return {key: value for key, value in state.items() if key in own or (linear and key.startswith(f"{backbone.classifier}."))}


def classifier(state: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor] | None:
    """Weight [classes, f] and bias [classes] of the one linear layer that stands between the features and the classes.

    None for a net that has two classifiers, or whose classifier is more than a linear layer (a norm, a hidden layer).
    """
    prefixes = tuple(f"{name}." for name in classifiers(backbone.module))
    others = [key for key in state if key.startswith(prefixes)] if prefixes else []
    pair = {part: state.get(f"{backbone.classifier}.{part}") for part in ("weight", "bias")}
    whole = {part: tensor for part, tensor in pair.items() if tensor is not None}
    alone = len(whole) == len(others) == 2 and not state.keys() - backbone.module.state_dict().keys() - {*others}
    return whole if alone and whole["weight"].ndim == 2 else None


def without_classifier(state: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """A state dict without the classifiers: distilled nets have two."""
    prefixes = tuple(f"{name}." for name in classifiers(backbone.module))
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}


def classifiers(net: nn.Module) -> tuple[str, ...]:
    """The prefixes of a net's classifiers: distilled nets have two, others none."""
    config: Any = net.pretrained_cfg
    names = config.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _create(arch: str, size: int, pretrained: bool, classes: int | None = 0) -> nn.Module:
    """The net with a classifier for so many classes; 0: none; None: for as many as the published one has."""
    import timm

    usual: Any = timm.get_pretrained_cfg(arch)
    other: dict[str, Any] = {"img_size": size} if usual.fixed_input_size and usual.input_size[-1] != size else {}
    try:
        return timm.create_model(arch, pretrained=pretrained, num_classes=classes, **other)
    except (TypeError, ValueError, AssertionError) as error:
        if not other:
            raise
        remedy = f"{arch} does not take pictures of this size ({error}); it is made for {usual.input_size[-1]} px"
        raise UserError(Problem("data.size", size, remedy)) from error
