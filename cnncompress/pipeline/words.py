"""The name of a decomposition, and the notes on it, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cnncompress.chains.plan import Plan
from cnncompress.chains.spec import Call, fewest_macs
from cnncompress.metrics import get_metric
from cnncompress.network.kinds import known_kinds
from cnncompress.pipeline.asked import Aim, FitAsked, Job
from cnncompress.pipeline.opened import Opened
from cnncompress.pipeline.rows import recorded
from cnncompress.reporting import Row

UNITS = {"macs": "MACs", "params": "parameters", "latency": "latency"}


def expected_steps(job: Job) -> list[str]:
    """The parts of the work that are announced, in order."""
    images, guided, aim = job.images.spec is not None, job.fit.guided, job.aim
    planning = ["calibrate"] * guided + ["candidates"]
    if aim.max_drop is not None:
        return ["build", "evaluate", "search", *planning, "latency", "save"]
    first = ["build"]
    if aim.searching:
        first += [*planning, *["latency"] * aim.by_latency, "plan"]
    if job.place.dry_run:
        return first
    first += ["evaluate"] * images + ["calibrate"] * (guided and not aim.searching) + ["factorize"]
    first += ["reconstruct"] * (job.fit.reconstruct > 0) + ["evaluate"] * images
    return [*first, *["latency"] * (aim.searching or job.timed), "save"]


def labels_for(job: Job) -> str:
    """The option that needs labels, in words; empty where images alone will do."""
    if job.aim.max_drop is not None:
        return "--max-drop"
    return f"the metric {job.fit.metric}" if get_metric(job.fit.metric).labelled() else ""


def hint(job: Job) -> str:
    """A hint at options that would give more, in a line; empty where there is none."""
    if job.fit.init == "scratch":
        return ""
    if job.images.spec is None:
        return (
            "the chains were fitted to the weights alone; far more accuracy is kept with --data FOLDER (fifty or more "
            "images, labels not needed), which plans methods and ranks and corrects the outputs"
        )
    if job.aim.assumed:
        return f"no budget was given, so the plan is for {job.aim.budget}; set one with --budget, --max-drop or --rank"
    if not job.fit.corrected and not job.fit.guided:
        return "the chains were fitted to the weights alone; --correct refit fits them to the images of --data too"
    return ""


def described(opened: Opened, job: Job) -> str:
    """The name of the decomposed network in tables; that of a run goes on from the run's."""
    before = recorded(opened).rows[1:]
    name = f"{before[-1].name}," if before else opened.name
    aim, asked = job.aim, job.layers
    if aim.searching or aim.plan is not None:
        how = "planned" if aim.budget is None else str(aim.budget)
        words = [name, how if aim.max_drop is None else f"max drop {aim.max_drop:g}"]
        words += [] if asked.method == "auto" else [asked.method]
        return " ".join(words)
    shown = "×".join(map(str, asked.rank)) if isinstance(asked.rank, tuple) else asked.rank
    fixed = ":" in asked.method and not asked.ranked
    words = [name, asked.method]
    if asked.per_layer or not fixed:
        words.append("per layer" if asked.per_layer else f"rank {shown}")
    return " ".join([*words, job.fit.metric] if job.fit.guided else words)


def spent(aim: Aim, plan: Plan, fit: FitAsked, of_run: bool) -> Iterator[str]:
    """The shares of cost that a plan within a budget leaves; nothing without a budget."""
    if not plan.achieved:
        return
    limits = aim.budget.shares if aim.budget is not None else {}
    shares = ", ".join(
        f"{value:.4f} of the {UNITS[cost]}{f' (budget {limits[cost]:g})' if cost in limits else ''}"
        for cost, value in plan.achieved.items()
    )
    own = " of the run's own" if of_run else ""
    yield f"the plan leaves {shares}{own}"
    if plan.rises:
        most = max(plan.rises, key=lambda name: plan.rises[name])
        unit = "nats an image" if fit.predicts_nats else "as a sum of squared relative errors"
        yield (
            f"predicted rise of the loss before any correction: {sum(plan.rises.values()):.3g} {unit}, "
            f"most of it in {most} ({plan.rises[most]:.3g})"
        )


def predicted_rise(rises: Mapping[str, float], planned: bool) -> Iterator[str]:
    """The rise of the loss that the fitted chains predict; nothing where the metric predicts none.

    That of a plan from a file, which is `planned` without a budget, is not what a budget predicts.
    """
    if not rises:
        return
    most = max(rises, key=lambda name: rises[name])
    total = sum(rises.values())
    other = "; not comparable with a budget's prediction, which is made before any correction" if planned else ""
    yield (
        f"predicted rise of the loss by the fitted chains: {total:.3g} nats an image, most of it in {most} "
        f"({rises[most]:.3g}){other}"
    )


def as_trained(plan: Plan, calls: Mapping[str, Call], row: Row) -> Iterator[str]:
    """What the network of `row` has to train, where its chains train in another form, and the MACs of that form."""
    stages = [stage for p in plan.layers.values() for stage in p.chain]
    fewer = sum(stage.params - stage.trained_params for stage in stages)
    if not fewer:
        return
    saved = sum(
        calls[name].macs_of(p.chain) - sum(fewest_macs(p.chain, size) for size in calls[name].sizes)
        for name, p in plan.layers.items()
    )
    fast = f", and {row.macs - saved:,} MACs with fast transforms where these take fewer" if saved else ""
    yield f"{row.name} trains as {row.params - fewer:,} parameters{fast}; the table counts the layers that run"


def narrow_outputs(plan: Plan, outputs: int | None) -> Iterator[str]:
    """A warning where the layer that gives the classes has been left with few dimensions for them."""
    for name, p in plan.layers.items():
        narrow = p.method == "svd" and p.spec.out_channels == outputs
        if narrow and outputs is not None and p.rank[0] < min(outputs - 1, 64):
            yield (
                f"{name} computes the scores of {outputs} classes, which span only {p.rank[0]} dimensions at rank "
                f"{p.rank[0]}; if the accuracy is too low, keep the layer with --skip {name}"
            )


def nothing_to_do(name: str, plan: Plan) -> str:
    """The one line that says why no layer was replaced."""
    if not plan.kept:
        return f"{name} has no {known_kinds('or')} layer to replace; nothing was written"
    reasons: dict[str, list[str]] = {}
    for layer, reason in plan.kept.items():
        reasons.setdefault(reason, []).append(layer)
    reason, layers = max(reasons.items(), key=lambda item: len(item[1]))
    return (
        f"no layer of {name} was replaced and nothing was written: {layers[0]}"
        f"{f' and {len(layers) - 1} more' if len(layers) > 1 else ''}: {reason}; `--dry-run` lists every reason"
    )
