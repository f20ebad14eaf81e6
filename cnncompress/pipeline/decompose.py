"""The whole job of `cnncompress decompose`."""

from __future__ import annotations

import dataclasses
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from cnncompress.chains.plan import Budget, Plan
from cnncompress.config import DecomposeSettings
from cnncompress.data import Data
from cnncompress.errors import CompressError, UnreachableError
from cnncompress.files.place import default_place
from cnncompress.files.tensorfile import digest_of
from cnncompress.latency.clock import check_threads
from cnncompress.models import DEFAULT, NONE
from cnncompress.names.models import is_path
from cnncompress.network.checking import check_finished
from cnncompress.network.device import resolve_device
from cnncompress.network.evaluate import Evaluation, paired_error
from cnncompress.network.profile import profile
from cnncompress.network.provenance import Provenance, attach, provenance
from cnncompress.pipeline.calibration import apart, cache_file, metric_of
from cnncompress.pipeline.compressor import Compressor
from cnncompress.pipeline.images import held_out, open_data
from cnncompress.pipeline.opened import Opened, count_outputs, need_layers, open_model
from cnncompress.pipeline.original import original_row
from cnncompress.pipeline.rows import make_row, planned_row, recorded
from cnncompress.pipeline.search import search
from cnncompress.reporting import Report, layer_rows
from cnncompress.runs import save_run
from cnncompress.runs.lock import reserved
from cnncompress.terminal.console import Steps

UNITS = {"macs": "MACs", "params": "parameters", "latency": "latency"}


@dataclasses.dataclass
class Decomposed:
    """What `run_decompose` did: the plan, the report, where it was saved (None for a dry run), seconds by phase.

    `hint` says what could be asked for instead.
    """

    plan: Plan
    report: Report
    out: Path | None
    phases: Steps
    hint: str = ""


def default_out(settings: DecomposeSettings, opened_name: str) -> Path:
    """`runs/NAME` where no `--out` was given."""
    return settings.out or default_place(opened_name)


def expected_steps(settings: DecomposeSettings) -> list[str]:
    """The parts of the work that are announced, in order."""
    images, guided = settings.data is not None, bool(metric_of(settings).needs)
    planning = ["calibrate"] * guided + ["candidates"]
    by_latency = settings.budget is not None and settings.budget.latency is not None
    if settings.max_drop is not None:
        return ["build", "evaluate", "search", *planning, "latency", "save"]
    first = ["build"]
    if settings.searching:
        first += [*planning, *["latency"] * by_latency, "plan"]
    if settings.dry_run:
        return first
    first += ["evaluate"] * images + ["calibrate"] * (guided and not settings.searching) + ["factorize"]
    first += ["reconstruct"] * (settings.reconstruct > 0) + ["evaluate"] * images
    return [*first, *["latency"] * settings.searching, "save"]


def run_decompose(settings: DecomposeSettings, command: list[str]) -> Decomposed:
    """The whole job of `cnncompress decompose`: load, plan, factorize, correct, measure, save.

    Nobody else may write at its `--out` meanwhile.
    """
    with ExitStack() as held:
        return _decompose(settings, command, held)


def labels_for(settings: DecomposeSettings) -> str:
    """What labels are needed for, in words; empty where images alone will do."""
    if settings.max_drop is not None:
        return "--max-drop"
    metric = metric_of(settings)
    return f"the metric {metric.name}" if metric.labelled() else ""


def _decompose(settings: DecomposeSettings, command: list[str], held: ExitStack) -> Decomposed:
    settings = settings.resolved()
    phases = Steps(expected_steps(settings))
    resolve_device(settings.device)
    check_threads(settings.threads)
    if settings.out is not None and not settings.dry_run:
        held.enter_context(reserved(settings.out, settings.force))
    with phases("build", f"load {settings.model}"):
        opened = open_model(settings)
        need_layers(opened, "decompose")
        attach(opened.model, opened.provenance)
        out = default_out(settings, opened.name)
        if not settings.dry_run:
            held.enter_context(reserved(out, settings.force))
        data = apart(open_data(settings, opened, labels_for(settings)), settings)
        cost = profile(opened.model, opened.example())
        compressor = Compressor(settings, opened, data, cost, out, phases)
        settings = compressor.settings
    chosen = None
    if settings.max_drop is None:
        settings, chosen = plan_for(settings, compressor)
        if settings.dry_run:
            return _dry_run(settings, compressor, chosen)
    if chosen is not None and not chosen.layers:
        raise CompressError(nothing_to_do(opened.name, chosen))
    measured: list[Evaluation | None] = []  # the original's accuracy, where it is not known yet

    def measure(network: nn.Module) -> Evaluation | None:
        measured.append(compressor.measure(network))
        return measured[-1]

    before = original_row(opened, cost, data, measure)
    if chosen is None:
        with phases("search", f"look for the fewest MACs that lose at most {settings.max_drop:g} points"):
            found = search(compressor, settings.max_drop or 0.0, before)
        chosen, small = found.plan, found.model
        result: Evaluation | None = found.result
    else:
        small = compressor.fit(chosen)
        result = compressor.measure(small)
        compressor.compare_answers(small)
    with phases("profile"):
        small_cost = profile(small, opened.example())
    row = make_row(describe(opened, settings), "decomposed", small_cost, result, data)
    row = dataclasses.replace(row, top1_error=paired_error(next(iter(measured), None), result))
    if settings.searching:
        small, times = compressor.timed(small, chosen)
        row = dataclasses.replace(row, latency=times.get("compressed"))
        before = dataclasses.replace(before, latency=times.get("original"))
    origin = provenance(small) or Provenance()
    check_finished(opened.model, small, opened.example())
    notes = [*spent(settings, chosen, compressor), *compressor.remarks, *compressor.told.notes, *compressor.notes]
    notes += predicted_rise({} if chosen.rises else origin.rises, settings.plan is not None)
    earlier = opened.provenance.plan
    if earlier.layers and earlier.metric != chosen.metric:
        notes.append(f"relative errors of what the run had replaced are under {earlier.metric}, others {chosen.metric}")
    notes += [f"assumed of {opened.taken_for}"] if opened.assumed else []
    notes += [*narrow_outputs(chosen, count_outputs(opened))]
    report = Report([before, row], layer_rows(origin.plan, origin.errors), origin.plan.kept, notes)
    info = run_info(settings, opened, data, command)
    with phases("save", f"save in {out}"):
        sides = cache_file(settings, compressor.told)
        report.notes += save_run(out, small, metrics=report.to_json(), info=info, force=settings.force, sides=sides)
    return Decomposed(chosen, report, out, phases, hint(settings))


def plan_for(settings: DecomposeSettings, compressor: Compressor) -> tuple[DecomposeSettings, Plan]:
    """The plan that the settings ask for, and the settings that it follows.

    Where no plan meets a budget that nobody asked for, it is halfway between the network itself and the least that
    can be had.
    """
    try:
        return settings, compressor.plan()
    except UnreachableError as error:
        if not settings.assumes_budget:
            raise
        budget = Budget(macs=math.ceil(500 * (1 + error.shares["macs"])) / 1000)
    return settings.model_copy(update={"budget": budget}), compressor.plan(budget)


def hint(settings: DecomposeSettings) -> str:
    """What could be asked for where little was, in a line."""
    if settings.data is None:
        return (
            "fitted to the weights alone: --data FOLDER of fifty or more images, labelled or not, plans the method and "
            "rank of every layer and corrects the outputs, which keeps far more of the accuracy"
        )
    if settings.assumes_budget:
        return f"planned for {settings.budget}, as nothing was asked for; --budget, --max-drop or --rank say how much"
    if settings.correct == "none" and not metric_of(settings).needs:
        return "fitted to the weights alone, the images only measured it; --correct refit makes use of them too"
    return ""


def _dry_run(settings: DecomposeSettings, compressor: Compressor, chosen: Plan) -> Decomposed:
    """The report of a plan that is not carried out."""
    opened, cost = compressor.opened, compressor.cost
    now = original_row(opened, cost, None, lambda network: None)
    row = planned_row(describe(opened, settings), chosen, cost, opened.example().element_size())
    notes = [*spent(settings, chosen, compressor), *compressor.remarks, *compressor.told.notes]
    report = Report([now, row], layer_rows(chosen, {}), chosen.kept, notes)
    return Decomposed(chosen, report, None, compressor.phases, hint(settings))


def spent(settings: DecomposeSettings, chosen: Plan, compressor: Compressor) -> list[str]:
    """What a budget was spent on, in words."""
    if not chosen.achieved:
        return []
    limits = settings.budget.shares if settings.budget is not None else {}
    shares = ", ".join(
        f"{value:.4f} of the {UNITS[cost]}{f' (budget {limits[cost]:g})' if cost in limits else ''}"
        for cost, value in chosen.achieved.items()
    )
    of = " of the run's own" if compressor.opened.run else ""
    notes = [f"the plan leaves {shares}{of}"]
    if chosen.rises:
        most = max(chosen.rises, key=lambda name: chosen.rises[name])
        unit = "nats an image" if compressor.predicts_nats else "as a sum of squared relative errors"
        notes.append(
            f"predicted rise of the loss before any correction: {sum(chosen.rises.values()):.3g} {unit}, "
            f"most of it in {most} ({chosen.rises[most]:.3g})"
        )
    return notes


def predicted_rise(rises: dict[str, float], planned: bool) -> list[str]:
    """The rise of the loss that the fitted chains predict, in words; empty where the metric predicts none.

    That of a plan from a file, which is `planned` without a budget, is not what a budget predicts.
    """
    if not rises:
        return []
    most = max(rises, key=lambda name: rises[name])
    total = sum(rises.values())
    other = "; what a budget predicts, before any correction, does not compare with it" if planned else ""
    return [
        f"predicted rise of the loss by the fitted chains: {total:.3g} nats an image, most of it in {most} "
        f"({rises[most]:.3g}){other}"
    ]


def narrow_outputs(chosen: Plan, outputs: int | None) -> list[str]:
    """A warning where the layer that gives the classes has been left with few dimensions for them."""
    if outputs is None:
        return []
    return [
        f"{name} gives the {outputs} classes: at rank {p.rank[0]} they lie in {p.rank[0]} dimensions; "
        f"keep it with --skip {name} if the accuracy suffers"
        for name, p in chosen.layers.items()
        if outputs is not None
        and p.method == "svd"
        and p.spec.out_channels == outputs
        and p.rank[0] < min(outputs - 1, 64)
    ]


def nothing_to_do(name: str, chosen: Plan) -> str:
    """The one line that says why no layer was replaced."""
    if not chosen.kept:
        return f"{name} has no Conv2d or Linear layer to replace; nothing was written"
    reasons: dict[str, list[str]] = {}
    for layer, reason in chosen.kept.items():
        reasons.setdefault(reason, []).append(layer)
    reason, layers = max(reasons.items(), key=lambda item: len(item[1]))
    return (
        f"no layer of {name} was replaced and nothing was written: {layers[0]}"
        f"{f' and {len(layers) - 1} more' if len(layers) > 1 else ''}: {reason}; `--dry-run` lists every reason"
    )


def describe(opened: Opened, settings: DecomposeSettings) -> str:
    """The name of the decomposed network in tables; that of a run goes on from the run's."""
    before = recorded(opened).rows[1:]
    name = f"{before[-1].name}," if before else opened.name
    if settings.searching or settings.plan is not None:
        how = "planned" if settings.budget is None else str(settings.budget)
        words = [name, how if settings.max_drop is None else f"max drop {settings.max_drop:g}"]
        words += [] if settings.method == "auto" else [settings.method]
        return " ".join(words)
    rank = settings.rank
    shown = "×".join(map(str, rank)) if isinstance(rank, tuple) else rank
    fixed = ":" in settings.method and "rank" not in settings.model_fields_set
    words = [name, settings.method]
    if settings.per_layer or not fixed:
        words.append("per layer" if settings.per_layer else f"rank {shown}")
    metric = metric_of(settings)
    return " ".join([*words, metric.name] if metric.needs else words)


def run_info(settings: DecomposeSettings, opened: Opened, data: Data | None, command: list[str]) -> dict[str, Any]:
    """What `run.json` holds beside the versions and the source."""
    previous = opened.run.info if opened.run else {}
    return {
        "name": opened.name,
        "model": previous.get("model") or described(settings, opened),
        "command": command,
        "seed": settings.seed,
        "data": {"spec": settings.data, "fingerprint": data.fingerprint} if data else None,
        "held_out": held_out(opened, data),
    }


def described(settings: DecomposeSettings, opened: Opened) -> dict[str, Any]:
    """What it takes to have the original again, and to know that it is the same."""
    file = settings.weights not in (DEFAULT, NONE) and is_path(settings.weights)
    weights = str(Path(settings.weights).resolve()) if file else settings.weights
    return {
        "name": settings.model,
        "weights": weights,
        "seed": settings.seed,
        "sha256": digest_of(opened.model.state_dict()),
    }
