"""A plan in a JSON file, as a run has it, perhaps edited by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnncompress.chains.lowering import check_lowering, lower
from cnncompress.chains.plan import LayerPlan, Narrowed, Plan
from cnncompress.chains.plan_json import stage_from_json
from cnncompress.chains.plan_schema import PlanFile
from cnncompress.chains.spec import Call, ConvSpec
from cnncompress.decompositions import get_method
from cnncompress.errors import CompressError, UsageError, nearest
from cnncompress.files.reading import read_given
from cnncompress.metrics import get_metric
from cnncompress.names.metrics import DEFAULT
from cnncompress.planning.rules import Choice, Kept, plan_layer
from cnncompress.text import first_line


def read_plan(
    path: Path, calls: Mapping[str, Call], reasons: Mapping[str, str], corrected: bool, metric: str | None = None
) -> Plan:
    """The plan in a file for the network that `calls` are of; UsageError in one line for one that does not fit it.

    Method, options and rank of each layer count; stages and costs follow from them and are not read. `reasons` tells
    which layers may not change, `corrected` gives every chain a bias, `metric` takes the place of the file's.
    """
    values = read_given(path, PlanFile, "plan", "a run's plan.json is")
    return plan_for(values, str(path), calls, reasons, corrected, metric)


def plan_for(
    values: Mapping[str, Any],
    path: str,
    calls: Mapping[str, Call],
    reasons: Mapping[str, str],
    corrected: bool,
    metric: str | None = None,
) -> Plan:
    """As `read_plan`, of the checked values of a plan that is at `path`."""
    layers, kept = values["layers"], values.get("kept", {})
    metric = metric or values.get("metric", DEFAULT)
    centred = corrected or get_metric(metric).centred
    plan = Plan(metric=metric, memory_format=values.get("memory_format", ""))
    for name in (*values.get("narrowed", {}), *layers):
        if name not in calls:
            raise UsageError(f"{path}: the network calls no layer '{name}'{nearest(name, calls)}")
        if name in reasons:
            raise UsageError(f"{path}: {name} cannot change: {reasons[name]}")
    plan.channels = dict(values.get("channels", {}))
    for name, entry in values.get("narrowed", {}).items():
        try:
            plan.narrowed[name] = _narrowed(calls[name], entry, centred)
        except CompressError as error:
            raise UsageError(f"{path}: {name}: {error}") from None
    for name, entry in layers.items():
        call = calls[name]
        try:
            if name in plan.narrowed:
                call = dataclasses.replace(call, spec=plan.narrowed[name].now)
            plan.layers[name] = _layer(call, entry, centred)
        except CompressError as error:
            raise UsageError(f"{path}: {name}: {error}") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"{path}: {name}: {first_line(error)}") from None
    plan.kept = {name: kept.get(name, "not in the plan") for name in calls if name not in plan.changes}
    return plan


def _narrowed(call: Call, entry: Mapping[str, Any], centred: bool) -> Narrowed:
    """What one entry says of a layer that has fewer channels; UsageError where it cannot be."""
    before, now = stage_from_json(entry["layer"]), stage_from_json(entry["now"])
    if before != call.spec or not isinstance(now, ConvSpec):
        raise UsageError(f"it is {call.spec} here, and {before} in the plan")
    takes_fewer = now.in_channels < call.spec.in_channels and not call.spec.depthwise
    now = now.replace(bias=call.spec.bias or (centred and takes_fewer))
    return Narrowed(call.spec, now, (call.macs, call.macs_of((now,))))


def _layer(call: Call, entry: Mapping[str, Any], centred: bool) -> LayerPlan:
    """The plan of one entry; UsageError with the reason where it cannot be followed."""
    if (layer := entry.get("layer")) and stage_from_json(layer) != call.spec:
        raise UsageError(f"it is {call.spec} here, and {stage_from_json(layer)} in the plan")
    method = get_method(entry["method"], **entry.get("options", {}))
    request = entry["rank"]
    rank = tuple(request) if isinstance(request, list) else (request,)
    reason = method.refuse(call.spec)
    if reason is not None:
        raise UsageError(reason)
    options = ",".join(f"{k}={v}" for k, v in method.settings.items())
    decision = plan_layer(call, Choice(f"{method.name}:{options}" if options else method.name, rank), centred=centred)
    if isinstance(decision, Kept):
        raise UsageError(decision.reason)
    lowering = entry.get("lowering", "")
    check_lowering(lowering)
    chain = lower(decision.chain, lowering)
    return dataclasses.replace(decision, chain=chain, macs=(call.macs, call.macs_of(chain)), lowering=lowering)
