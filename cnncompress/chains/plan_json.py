"""Stages and plans as JSON-ready values, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cnncompress.chains.plan import LayerPlan, Narrowed, Plan
from cnncompress.chains.spec import ConvSpec
from cnncompress.chains.stages import STAGES, Stage


def stage_to_json(stage: Stage) -> dict[str, Any]:
    """A stage as JSON-ready values; the inverse of `stage_from_json`."""
    return {"kind": stage.kind, **stage.to_json()}


def stage_from_json(values: Mapping[str, Any]) -> Stage:
    """Read a stage written by `stage_to_json`; KeyError, TypeError or ValueError for anything else."""
    kind = values["kind"]
    if kind not in STAGES:
        raise ValueError(f"unknown stage kind {kind!r}")
    return STAGES[kind].from_json(kind, {k: v for k, v in values.items() if k != "kind"})


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """A plan as JSON-ready values; the inverse of `plan_from_json`."""
    layers = {
        name: {
            "layer": stage_to_json(p.spec),
            "method": p.method,
            "rank": list(p.rank),
            "options": p.options,
            "macs": list(p.macs),
            "stages": [stage_to_json(s) for s in p.chain],
            "lowering": p.lowering,
        }
        for name, p in plan.layers.items()
    }
    values = {"metric": plan.metric, "memory_format": plan.memory_format, "layers": layers, "kept": plan.kept}
    narrowed = {
        name: {"layer": stage_to_json(n.spec), "now": stage_to_json(n.now), "macs": list(n.macs)}
        for name, n in plan.narrowed.items()
    }
    times = {name: list(pair) for name, pair in plan.times.items()}
    further = {"achieved": plan.achieved, "rises": plan.rises, "times": times}
    further |= {"narrowed": narrowed, "channels": plan.channels}
    return values | {k: v for k, v in further.items() if v}


def plan_from_json(values: dict[str, Any]) -> Plan:
    """Read a plan written by `plan_to_json`; KeyError, TypeError or ValueError for anything else."""
    layers = {}
    for name, p in values["layers"].items():
        spec = _geometry(name, p["layer"])
        chain = tuple(stage_from_json(stage) for stage in p["stages"])
        rank, lowering = tuple(p["rank"]), str(p.get("lowering", ""))
        layers[name] = LayerPlan(spec, p["method"], rank, chain, tuple(p["macs"]), p["options"], lowering)
    rises, achieved = ({k: v for k, v in values.get(key, {}).items() if v is not None} for key in ("rises", "achieved"))
    memory_format = str(values.get("memory_format", ""))
    plan = Plan(layers, dict(values["kept"]), values["metric"], memory_format, rises, achieved)
    for name, n in values.get("narrowed", {}).items():
        plan.narrowed[name] = Narrowed(_geometry(name, n["layer"]), _geometry(name, n["now"]), tuple(n["macs"]))
    plan.channels = dict(values.get("channels", {}))
    plan.times = {name: (before, after) for name, (before, after) in values.get("times", {}).items()}
    return plan


def _geometry(name: str, values: Mapping[str, Any]) -> ConvSpec:
    spec = stage_from_json(values)
    if not isinstance(spec, ConvSpec):
        raise ValueError(f"{name} is not a layer")
    return spec
