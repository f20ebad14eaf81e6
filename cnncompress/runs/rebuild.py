"""From a provenance and a set of tensors back to a network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cnncompress.chains.plan import Plan
from cnncompress.chains.spec import chain_output_size
from cnncompress.errors import CompressError, RunError
from cnncompress.files.state import kind_of_entry, packed, plain_tensors, same_values
from cnncompress.models import build_architecture
from cnncompress.network.kinds import spec_of
from cnncompress.network.layers import layers_of
from cnncompress.network.narrow import narrow
from cnncompress.network.provenance import Provenance
from cnncompress.network.run import inference, run, same_outputs
from cnncompress.network.swap import apply_plan

SIZES = ((97, 89), (512, 509))  # of inputs, to compare what layers and chains make of them


def skeleton(known: Provenance, failure: str) -> nn.Module:
    """The architecture with its chains in place: values are arbitrary, parameters may be on the meta device.

    RunError, starting with `failure`, where the plan does not fit the architecture.
    """
    try:
        with torch.random.fork_rng(devices=[]):  # reading or writing a run draws no random numbers from the caller
            model = build_architecture(known.source)
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise RunError(f"{failure}: {known.source.name} cannot be built here ({_reason(error)})") from error
    try:
        narrow(model, known.plan)
        _check_layers(model, known.plan)
        return apply_plan(model, known.plan)
    except (CompressError, AttributeError, RuntimeError, ValueError, TypeError) as error:
        raise RunError(f"{failure}: its plan does not fit {known.source.name} ({_reason(error)})") from error


def _check_layers(model: nn.Module, plan: Plan) -> None:
    """CompressError where a layer is not what the plan says that it replaced, or its chain gives other sizes."""
    layers = layers_of(model)
    for name, planned in plan.layers.items():
        if name in layers and planned.spec != (built := spec_of(layers[name])):
            raise CompressError(f"{name} is {built}, and another layer, {planned.spec}, in the plan")
        for size in SIZES:
            if chain_output_size(planned.chain, size) != planned.spec.output_size(size):
                raise CompressError(f"the stages of {name} give outputs of other sizes than the layer")


def check_rebuild(model: nn.Module, known: Provenance) -> None:
    """RunError where `model` is not what its source and plan build with its tensors, so that it could not be loaded.

    Its other tensors are then missing, or what no file of tensors holds is another each time it is built.
    """
    failure = "the network cannot be saved"
    built, own = skeleton(known, failure).state_dict(), model.state_dict()
    difference = _difference(built, own)
    if difference:
        raise RunError(f"{failure}: it is not what {known.source.name} and its plan build ({difference})")
    for name, value in packed(own).items():
        if not same_values(value, built[name]):
            raise RunError(
                f"{failure}: {name} is {kind_of_entry(value)}, which a run cannot hold, and {known.source.name} builds "
                "another one than this; let it build the same each time, or give the network in floating point"
            )


def check_packed(model: nn.Module, known: Provenance) -> None:
    """`check_rebuild` before any work, where the network holds what no file of tensors does."""
    if packed(model.state_dict()) and known.source is not None:
        check_rebuild(model, known)


def comes_back(model: nn.Module, known: Provenance, example: Tensor) -> bool:
    """Whether its source, its plan and its tensors make the network again, by the answers to `example`.

    They do not where it holds values outside of them. A random network, or one that does not run, cannot tell.
    """
    failure = "the network built again"
    again = skeleton(known, failure)
    fill(again, model.state_dict(), failure)
    try:
        with inference(model), inference(again):
            first, second = run(model, example), run(model, example)
            return not same_outputs(first, second) or same_outputs(run(again, example), first)
    except CompressError:
        return True


def fill(model: nn.Module, tensors: Mapping[str, Tensor], failure: str) -> None:
    """Give a skeleton its tensors, with their dtype, strides and sharing; floating-point parameters require gradients.

    What is no plain tensor stays as it was built.

    RunError, starting with `failure`, where they do not fit or something is left without a value.
    """
    own = model.state_dict()
    tensors = plain_tensors(tensors)
    difference = _difference(plain_tensors(own), tensors)
    if difference:
        raise RunError(f"{failure} does not fit its plan ({difference})")
    state = OrderedDict({**tensors, **packed(own)})
    state._metadata = own._metadata  # type: ignore[attr-defined]  # some networks insist on their version in it
    shared: dict[int, nn.Parameter] = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        if name in tensors:
            state[name] = shared.setdefault(id(tensors[name]), nn.Parameter(tensors[name], requires_grad=False))
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise RunError(f"{failure} does not fit its plan ({_reason(error)})") from error
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    empty = [name for name, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if empty:
        raise RunError(f"{failure} gives no value to {empty[0]}")


def _difference(expected: Mapping[str, Any], stored: Mapping[str, Any]) -> str | None:
    """The first few of missing, unexpected and misshapen entries in words, or None."""
    both = expected.keys() & stored.keys()
    parts = {
        "missing": [name for name in expected if name not in both],
        "unexpected": [name for name in stored if name not in both],
        "of another shape": [
            name for name in stored if name in both and _shape(expected[name]) != _shape(stored[name])
        ],
    }
    words = [f"{len(v)} {what}: {', '.join(v[:3])}{', ...' * (len(v) > 3)}" for what, v in parts.items() if v]
    return "; ".join(words) or None


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
