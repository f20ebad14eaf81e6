"""Networks by name: torchvision's, timm's, the built-in ones, and those of a user's own functions."""

from __future__ import annotations

import dataclasses
import http.client
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnncompress.chains.spec import Pair, as_pair
from cnncompress.errors import CompressError, UsageError, nearest
from cnncompress.models.builtin import BUILTIN
from cnncompress.models.sources import (
    AUXILIARY,
    ModelSource,
    build_architecture,
    check_source,
    construct,
    describe,
    find_source,
    import_timm,
    import_torchvision_models,
    list_models,
)
from cnncompress.models.unwrapping import State
from cnncompress.models.weights import find_weights, load_weights, read_weights
from cnncompress.names.models import is_path, refuse_weights
from cnncompress.network.inputs import input_channels
from cnncompress.network.modes import evaluating
from cnncompress.network.preprocessing import Preprocessing
from cnncompress.network.provenance import Provenance, attach

__all__ = ["LoadedModel", "ModelSource", "build_architecture", "list_models", "load_model", "load_weights"]

DEFAULT, NONE = "DEFAULT", "none"


@dataclass
class LoadedModel:
    """A network on the CPU in eval mode, with its Provenance; what it was built from, and the images it expects.

    `weights` says in words where the weights are from.
    """

    model: nn.Module = dataclasses.field(repr=False)
    source: ModelSource
    preprocessing: Preprocessing
    weights: str

    @property
    def provenance(self) -> Provenance:
        """What it is, as the network's attribute `cnncompress` tells too."""
        return Provenance(self.source, self.preprocessing)


def load_model(
    name: str,
    weights: str = DEFAULT,
    *,
    num_classes: int | None = None,
    input_size: int | Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    arguments: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> LoadedModel:
    """Build a network and give it weights.

    `name` is a torchvision classification network, a built-in one, `timm:NAME`, `package.module:function` or
    `file.py:function`. `weights` is `DEFAULT` (the published ones; a function's network as it is returned), the name of
    a torchvision weights enum member, `none` (a random initialisation by `seed`) or a file (`.safetensors`, `.pth`).
    The number of classes follows the file, or is `num_classes`. `input_size` (height and width in pixels; images are
    then scaled, not cropped), `mean` and `std` override the preprocessing that belongs to the weights. `arguments` are
    keyword arguments of the function or of torchvision's or timm's network: plain values that the source keeps.

    Raises UsageError for names that do not exist, CompressError for weights that cannot be had or do not fit and for
    a function that fails.
    """
    refuse_weights(name)
    source = find_source(name)
    given = dict(arguments or {}) if num_classes is None else {**(arguments or {}), "num_classes": num_classes}
    source = _with(source, **given)
    check_source(source)
    size = None if input_size is None else as_pair(input_size)
    path = None if weights in (DEFAULT, NONE) or not is_path(weights) else Path(weights)
    read = None if path is None else read_weights(path)
    base = _preprocessing(source, DEFAULT if path or weights == NONE else weights)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        skeleton = None if path is None else _construct(source, empty=True)
        picked = None if path is None or skeleton is None else find_weights(read, skeleton, path)
        if source.kind == "torchvision" and source.name.startswith("vit_"):
            source, base = _fix_image_size(source, base, size, picked.state if picked else None)
        if picked is not None:
            own = skeleton if source.kind == "factory" else None
            model, source = _from_file(source, picked.state, weights, own)
            described = f"file {weights}{f' ({picked.told})' if picked.told else ''}"
        else:
            model, source, described = _by_name(source, weights, seed)
    if meta := next((n for n, p in model.named_parameters() if p.is_meta), None):
        raise CompressError(f"{source.name} returned a network without values: {meta} is on the meta device")
    if source.kind == "timm":
        base = _timm_preprocessing(model)
    sized = base.changed(size)
    prepared = sized.for_channels(input_channels(evaluating(model), sized.size)).changed(None, mean, std)
    loaded = LoadedModel(model, source, prepared, described)
    attach(model, loaded.provenance)
    return loaded


def _with(source: ModelSource, **kwargs: Any) -> ModelSource:
    return dataclasses.replace(source, kwargs={**source.kwargs, **kwargs})


# --- weights ---


def _by_name(source: ModelSource, weights: str, seed: int) -> tuple[nn.Module, ModelSource, str]:
    if source.kind == "torchvision" and weights != NONE:
        return _torchvision_pretrained(source, weights)
    if weights not in (DEFAULT, NONE):
        raise UsageError(f"unknown weights '{weights}' for {source.name}: give DEFAULT, none or a file")
    if source.kind == "factory":
        return construct(source, empty=False), source, f"as {source.name} returns them"
    if weights == NONE:
        return _construct(source), source, f"random (seed {seed})"
    if source.kind == "timm":
        return _timm_pretrained(source)
    trained = BUILTIN[source.name].weights
    if trained is None:
        return _construct(source), source, f"random (seed {seed}): there are none of it"
    model = construct(source, empty=False)
    load_weights(model, read_weights(trained), "the built-in weights")
    return model, source, "built-in"


def _construct(source: ModelSource, *, empty: bool = False) -> nn.Module:
    try:
        return construct(source, empty=empty)
    except (ValueError, TypeError) as error:
        raise UsageError(f"cannot build {source.name} with {source.kwargs}: {describe(error)}") from error


def _weights_enum(source: ModelSource, weights: str) -> Any:
    members = import_torchvision_models().get_model_weights(source.name).__members__
    if weights not in members:
        known = ", ".join([*members, NONE])
        raise UsageError(
            f"unknown weights '{weights}' for {source.name}{nearest(weights, members)} (known: {known}, or a file)"
        )
    return members[weights]


def _torchvision_pretrained(source: ModelSource, weights: str) -> tuple[nn.Module, ModelSource, str]:
    chosen = _weights_enum(source, weights)
    kwargs = {k: v for k, v in source.kwargs.items() if k != "aux_logits"}
    try:
        models = import_torchvision_models()
        model = models.get_model(source.name, weights=chosen, progress=sys.stderr.isatty(), **kwargs)
    except ValueError as error:
        raise UsageError(f"the {chosen.name} weights of {source.name} do not fit: {describe(error)}") from error
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise CompressError(
            f"cannot download the {chosen.name} weights of {source.name} ({describe(error)}): "
            "give a file with --weights PATH, or --weights none"
        ) from error
    if source.name in AUXILIARY:
        model.aux_logits = False
        for head in AUXILIARY[source.name]:
            setattr(model, head, None)
        source = _with(source, transform_input=True)
    return model, source, f"torchvision {chosen.name}"


def _timm_pretrained(source: ModelSource) -> tuple[nn.Module, ModelSource, str]:
    timm = import_timm()
    try:
        model = timm.create_model(source.name, pretrained=True, **source.kwargs)
    except Exception as error:  # the hub client raises errors of several libraries
        raise CompressError(
            f"cannot get timm's weights of {source.name} ({describe(error)}): "
            "give a file with --weights PATH, or --weights none"
        ) from error
    return model, source, f"timm {model.pretrained_cfg.get('tag') or DEFAULT}"


def _from_file(source: ModelSource, state: State, where: str, built: nn.Module | None) -> tuple[nn.Module, ModelSource]:
    """A network with the tensors of a file, in the network `built` for the source where there is one."""
    if source.kind == "torchvision" and source.name in AUXILIARY:
        heads = tuple(f"{head}." for head in AUXILIARY[source.name])
        state = {k: v for k, v in state.items() if not k.startswith(heads)}
        source = _with(source, transform_input=True)  # as torchvision does for all weights it publishes
    model = built or _construct(source, empty=True)
    if source.kind != "factory" and (shape := _shape_of(model, state, source)):
        source = _with(source, **shape)
        model = _construct(source, empty=True)
    load_weights(model, state, f"weights {where}")
    return model, source


def _shape_of(model: nn.Module, state: State, source: ModelSource) -> dict[str, int]:
    """The classes and, for timm, the input channels of weights where they are other than the network's."""
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    (first, stem), (last, head) = layers[0], layers[-1]
    saved = {"num_classes": state.get(f"{last}.weight", head.weight).shape[0]}
    own = {"num_classes": head.weight.shape[0]}
    if source.kind == "timm" and isinstance(stem, nn.Conv2d) and stem.groups == 1:
        saved["in_chans"], own["in_chans"] = state.get(f"{first}.weight", stem.weight).shape[1], stem.in_channels
    return {key: n for key, n in saved.items() if n != own[key] and key not in source.kwargs}


# --- preprocessing ---


def _preprocessing(source: ModelSource, weights: str) -> Preprocessing:
    if source.kind == "builtin":
        return BUILTIN[source.name].preprocessing
    if source.kind != "torchvision":
        return Preprocessing()
    preset = _weights_enum(source, weights).transforms()
    return Preprocessing(
        size=(preset.crop_size[0], preset.crop_size[0]),
        resize=preset.resize_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )


def _timm_preprocessing(model: nn.Module) -> Preprocessing:
    from timm.data import resolve_data_config

    config = resolve_data_config({}, model=model)
    size = as_pair(config["input_size"][1:])
    interpolation = config["interpolation"] if config["interpolation"] in ("bilinear", "bicubic") else "bilinear"
    resize = math.floor(min(size) / config["crop_pct"])
    return Preprocessing(size, resize, tuple(config["mean"]), tuple(config["std"]), interpolation)


def _fix_image_size(
    source: ModelSource, base: Preprocessing, size: Pair | None, state: State | None
) -> tuple[ModelSource, Preprocessing]:
    """A vision transformer is built for one image size: the one asked for, that of the file, or the default."""
    if size is not None and size[0] != size[1]:
        raise UsageError(f"{source.name} takes square images only, not {size[0]}x{size[1]}")
    side = base.size[0] if size is None else size[0]
    positions = None if state is None or size is not None else state.get("encoder.pos_embedding")
    if positions is not None and positions.ndim == 3:
        patch = int(source.name.rpartition("_")[2])
        side = math.isqrt(max(positions.shape[1] - 1, 1)) * patch
        if side != base.size[0]:
            base = dataclasses.replace(base, size=(side, side), resize=side)
    return _with(source, image_size=side), base
