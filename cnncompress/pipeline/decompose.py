"""`decompose`: from a network and a plan to a compressed network, and the whole job around it."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from cnncompress.config import DecomposeSettings
from cnncompress.data import Data
from cnncompress.decompositions import dense_kernel, get_method
from cnncompress.errors import CompressError
from cnncompress.evaluate import resolve_device
from cnncompress.factored import Provenance, attach, build_chain, provenance, spec_of, swap
from cnncompress.linalg import check_finite
from cnncompress.metrics import get_metric
from cnncompress.pipeline.opening import Opened, Phases, evaluate_on, make_row, open_data, open_model
from cnncompress.planning import Choice, plan
from cnncompress.profiling import profile
from cnncompress.report import Report, layer_rows
from cnncompress.runs import check_output, save_run
from cnncompress.spec import LayerPlan, Plan


def decompose(model: nn.Module, plan: Plan, *, statistics: Any = None, progress: bool = True) -> nn.Module:
    """A new network in which every layer of `plan` is replaced by its chain; `model` stays as it is.

    Layers on the meta device are replaced in shape only. Raises CompressError for NaN or infinite weights.
    """
    factory = get_metric(plan.metric)
    replaced = [model.get_submodule(name) for name in plan.layers]
    small = copy.deepcopy(model, {id(m): m for m in replaced})  # layers on their way out need no copy
    errors: dict[str, float] = {}
    bar = tqdm(plan.layers.items(), desc="decompose", unit="layer", disable=None if progress else True)
    for name, layer_plan in bar:
        bar.set_postfix_str(name)
        module = small.get_submodule(name)
        replacement, errors[name] = factorize_layer(name, module, layer_plan, factory)
        swap(small, name, replacement)
    before = provenance(model) or Provenance()
    merged = Plan({**before.plan.layers, **plan.layers}, _kept(before.plan, plan), plan.metric)
    return attach(small, Provenance(before.source, before.preprocessing, merged, {**before.errors, **errors}))


def _kept(before: Plan, now: Plan) -> dict[str, str]:
    kept = {**before.kept, **now.kept}
    return {name: reason for name, reason in kept.items() if name not in before.layers and name not in now.layers}


def factorize_layer(name: str, module: Any, layer_plan: LayerPlan, factory: Any) -> tuple[nn.Module, float]:
    """The chain module for one layer, and its relative error in the metric (NaN on the meta device)."""
    spec = spec_of(module)
    weight = module.weight.detach().reshape(spec.weight_shape)
    if weight.is_meta:
        return build_chain(layer_plan, None, module), float("nan")
    check_finite(weight, name)
    metric = factory(spec, None)
    method = get_method(layer_plan.method, **layer_plan.options)
    kernels = method.factorize(weight, spec, layer_plan.rank, metric)
    chain = build_chain(layer_plan, kernels, module)
    del kernels
    return chain, metric.relative_error(dense_kernel(weight, spec.groups), chain.to_dense())


@dataclasses.dataclass
class Decomposed:
    """What `run_decompose` did: the plan, the report, where it was saved (None for a dry run), seconds by phase."""

    plan: Plan
    report: Report
    out: Path | None
    phases: Phases


def default_out(settings: DecomposeSettings, opened_name: str) -> Path:
    """`runs/NAME` where no `--out` was given."""
    return settings.out or Path("runs") / opened_name


def run_decompose(settings: DecomposeSettings, command: list[str]) -> Decomposed:
    """The whole job of `cnncompress decompose`: load, plan, factorize, measure, save."""
    phases = Phases()
    resolve_device(settings.device)
    if settings.out is not None and not settings.dry_run:
        check_output(settings.out, settings.force)
    with phases("build"):
        opened = open_model(settings)
        attach(opened.model, opened.provenance)
        out = default_out(settings, opened.name)
        if not settings.dry_run:
            check_output(out, settings.force)
        data = open_data(settings, opened)
    with phases("plan"):
        chosen = make_plan(settings, opened)
        cost = profile(opened.model, opened.example())
    if settings.dry_run:
        return Decomposed(chosen, Report(layers=layer_rows(chosen, {}), kept=chosen.kept), None, phases)
    if not chosen.layers:
        raise CompressError(nothing_to_do(opened.name, chosen))
    before = Report.from_json({**opened.run.metrics, "kept": {}}).rows[:1] if opened.run else []
    if not before:
        with phases("evaluate"):
            before = [make_row(opened.name, "original", cost, evaluate_on(opened.model, data, settings), data)]
    with phases("factorize"):
        small = decompose(opened.model, chosen)
    with phases("profile"):
        small_cost = profile(small, opened.example())
    with phases("evaluate"):
        result = evaluate_on(small, data, settings)
    row = make_row(describe(opened.name, settings), "decomposed", small_cost, result, data)
    origin = provenance(small) or Provenance()
    report = Report(rows=[*before, row], layers=layer_rows(origin.plan, origin.errors), kept=origin.plan.kept)
    info = run_info(settings, opened, data, command)
    with phases("save"):
        save_run(out, small, metrics=report.to_json(), info=info, force=settings.force)
    return Decomposed(chosen, report, out, phases)


def make_plan(settings: DecomposeSettings, opened: Opened) -> Plan:
    """The plan that the settings ask for; UsageError where the rank is above the full rank of every layer."""
    default = Choice(settings.method, settings.rank)
    per_layer = {
        pattern: Choice(rule.method or default.method, default.rank if rule.rank is None else rule.rank)
        for pattern, rule in settings.per_layer.items()
    }
    chosen = plan(
        opened.model,
        opened.example(),
        method=settings.method,
        rank=settings.rank,
        metric=settings.metric,
        layers=settings.layers,
        skip=settings.skip,
        per_layer=per_layer,
    )
    return chosen


def nothing_to_do(name: str, chosen: Plan) -> str:
    """The one line that says why no layer was replaced."""
    reasons: dict[str, list[str]] = {}
    for layer, reason in chosen.kept.items():
        reasons.setdefault(reason, []).append(layer)
    reason, layers = max(reasons.items(), key=lambda item: len(item[1]), default=("it has none", [""]))
    return (
        f"no layer of {name} was replaced and nothing was written: {layers[0]}"
        f"{f' and {len(layers) - 1} more' if len(layers) > 1 else ''}: {reason}; `--dry-run` lists every reason"
    )


def describe(name: str, settings: DecomposeSettings) -> str:
    """The name of the decomposed network in tables."""
    if settings.per_layer:
        return f"{name} {settings.method} per layer"
    rank = settings.rank
    shown = "×".join(map(str, rank)) if isinstance(rank, tuple) else rank
    return f"{name} {settings.method} rank {shown}"


def run_info(settings: DecomposeSettings, opened: Opened, data: Data | None, command: list[str]) -> dict[str, Any]:
    """What `run.json` holds beside the versions and the source."""
    previous = opened.run.info if opened.run else {}
    model = previous.get("model") or {"name": settings.model, "weights": settings.weights}
    return {
        "name": opened.name,
        "model": model,
        "command": command,
        "seed": settings.seed,
        "data": {"spec": settings.data, "fingerprint": data.fingerprint} if data else None,
    }
