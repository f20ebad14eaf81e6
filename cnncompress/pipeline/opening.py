"""From names to networks and images: what every command starts with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnncompress.chains.plan import Plan
from cnncompress.chains.spec import Permutation
from cnncompress.config import ModelSettings
from cnncompress.data import Data, load_data, make_loader, split
from cnncompress.errors import CompressError, DataError, RunError, UsageError
from cnncompress.models import LoadedModel, list_models, load_model
from cnncompress.models.sources import PROGRAM_ONLY
from cnncompress.names.models import SUFFIXES
from cnncompress.network.copying import clone
from cnncompress.network.costs import Profile
from cnncompress.network.device import resolve_device
from cnncompress.network.evaluate import Evaluation, evaluate
from cnncompress.network.inputs import input_dtype
from cnncompress.network.preprocessing import Preprocessing
from cnncompress.network.provenance import Provenance, attach, provenance
from cnncompress.network.run import inference, logits, run
from cnncompress.reporting import Report, Row
from cnncompress.reporting.rows import Kind
from cnncompress.runs import LoadedRun, is_run, load_run
from cnncompress.terminal.console import LOG
from cnncompress.text import plain


@dataclasses.dataclass
class Opened:
    """A network ready for work, whether it came by name or from a run."""

    name: str
    model: nn.Module
    preprocessing: Preprocessing
    provenance: Provenance
    weights: str = ""
    run: LoadedRun | None = None
    assumed: tuple[str, ...] = ()  # of the preprocessing: what nothing and nobody has told

    @property
    def taken_for(self) -> str:
        """Weights and input in words, with what was assumed: a network does not say how its images were prepared."""
        prepared, unsure = self.preprocessing, " (assumed: give --{})"
        numbers = {name: " ".join(f"{v:.4g}" for v in getattr(prepared, name)) for name in ("mean", "std")}
        kind = {1: "grey", 3: "RGB"}.get(prepared.channels, f"{prepared.channels}-channel")
        words = {"input-size": f"{kind} images of {'×'.join(map(str, prepared.size))}"}
        words |= {name: f"{name} {text}" for name, text in numbers.items()}
        said = [text + (unsure.format(option) if option in self.assumed else "") for option, text in words.items()]
        return plain(f"network {self.name}: weights: {self.weights}; {', '.join(said)}")

    def example(self, batch: int = 1, seed: int = 0) -> Tensor:
        """A random input [batch, c, h, w] in the network's dtype."""
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(batch, self.preprocessing.channels, *self.preprocessing.size, generator=generator)
        return values.to(input_dtype(self.model))


def open_model(settings: ModelSettings) -> Opened:
    """The network of `settings.model`: a name, a factory or a run directory."""
    name = settings.model
    if name is None:
        raise UsageError("no network: give MODEL, or `model:` in the config")
    if _means_run(name):
        return open_run(Path(name), settings)
    loaded: LoadedModel = load_model(
        name,
        settings.weights,
        num_classes=settings.num_classes,
        input_size=settings.input_size,
        mean=settings.mean,
        std=settings.std,
        arguments=settings.model_arg,
        seed=settings.seed,
    )
    origin = Provenance(loaded.source, loaded.preprocessing)
    short = name.rsplit(":", 1)[-1] if loaded.source.kind != "torchvision" else name
    opened = Opened(short, loaded.model, loaded.preprocessing, origin, loaded.weights, None, _assumed(loaded, settings))
    LOG.info(opened.taken_for)
    return opened


def _assumed(loaded: LoadedModel, settings: ModelSettings) -> tuple[str, ...]:
    """The options that could have told of the input what a function's network, or a change of it, leaves open."""
    given = {"input-size": settings.input_size, "mean": settings.mean, "std": settings.std}
    known = loaded.source.kind != "factory"
    usual = known and loaded.preprocessing.channels == 3
    told = {"input-size": known, "mean": usual, "std": usual}
    return tuple(option for option, value in given.items() if value is None and not told[option])


def _means_run(name: str) -> bool:
    if is_run(name):
        return True
    path_like = "/" in name and ":" not in name and not name.lower().endswith((".py", *SUFFIXES))
    return name not in list_models() and (path_like or Path(name).is_dir())


def open_run(path: Path, settings: ModelSettings) -> Opened:
    """The network of a run; UsageError for settings that only a network by name can follow."""
    run = load_run(path, settings.trust_code)
    if run.note:
        LOG.warning(plain(run.note))
    for option in ("weights", "num_classes", "model_arg"):
        if getattr(settings, option) != type(settings).model_fields[option].default:
            flag = option.replace("_", "-")
            raise UsageError(f"{path} is a run, with weights and classes of its own; leave out --{flag}")
    prepared = (run.preprocessing or Preprocessing()).changed(settings.input_size, settings.mean, settings.std)
    origin = dataclasses.replace(provenance(run.model) or Provenance(), preprocessing=prepared)
    attach(run.model, origin)  # so that whatever is made of it remembers how its input is prepared
    opened = Opened(str(run.info.get("name", path.name)), run.model, prepared, origin, f"run {path}", run)
    LOG.info(opened.taken_for)
    return opened


def need_layers(opened: Opened, doing: str) -> None:
    """RunError where a run was opened as a program, of which there are no layers."""
    source = opened.provenance.source
    if source is not None and source.kind == "program":
        built = opened.run is not None and opened.run.info["source"]["kind"] == "factory"
        remedy = f"; give --trust-code where {source.name} is at hand" if built else ""
        raise RunError(f"cannot {doing} {opened.weights}: {PROGRAM_ONLY}{remedy}")


def recorded(opened: Opened) -> Report:
    """What was measured when the run was written, empty for a network by name; RunError where it is damaged."""
    run = opened.run
    if run is None:
        return Report()
    try:
        return Report.from_json(run.metrics)
    except CompressError as error:
        raise RunError(f"{opened.weights} is damaged: metrics.json: {error}") from error


def open_data(settings: ModelSettings, opened: Opened, labels_for: str = "") -> Data | None:
    """The images of `settings.data`, checked against the network's number of outputs; None without data.

    A set that a run was calibrated or trained on a part of is split as it was then, so that no other is evaluated.
    DataError for images without labels where they are needed: `labels_for` says what for.
    """
    if settings.data is None:
        return None
    data = load_data(settings.data, opened.preprocessing, count_outputs(opened))
    if labels_for and not data.labelled:
        raise DataError(f"{data.name}: {labels_for} needs labels, which images in folders {data.name}/CLASS/ have")
    for known in held_out(opened):
        if known["fingerprint"] == data.fingerprint:
            data = split(data, known["share"], known["seed"])
            LOG.info("%s: the %d images that this run has not seen count", data.name, len(data.val))
    return data


def held_out(opened: Opened, data: Data | None = None) -> list[dict[str, Any]]:
    """How data sets were split that a run saw a part of, as run.json has it, and how `data` is."""
    known = list(opened.run.info.get("held_out", [])) if opened.run else []
    if data is not None and data.parted is not None:
        new = dict(zip(("fingerprint", "share", "seed"), (data.fingerprint, *data.parted), strict=True))
        known += [new] if new not in known else []
    return known


def count_outputs(opened: Opened) -> int | None:
    """The number of classes a network tells apart, from one forward pass; None where it does something else."""
    with inference(opened.model):
        output = run(opened.model, opened.example())
    try:
        answers = logits(output)
    except CompressError:
        return None
    answers = answers if answers.shape[:1] == (1,) else answers[None]
    return answers.shape[1] if answers.dim() == 2 and answers.shape[1] > 1 else None


def evaluate_on(model: nn.Module, data: Data | None, settings: ModelSettings) -> Evaluation | None:
    """Accuracy on the evaluation images of `data`; None without data or labels."""
    if data is None or not data.labelled:
        return None
    device = resolve_device(settings.device)
    loader = make_loader(data.val, settings.batch_size, workers=settings.workers)
    on_device = model if device.type == "cpu" else clone(model).to(device)
    return evaluate(on_device, loader, device)


def make_row(name: str, kind: Kind, cost: Profile, result: Evaluation | None, data: Data | None) -> Row:
    """One line of the network table."""
    if result is None:
        return Row.of(name, kind, cost)
    measured = {"top1": result.top1, "top5": result.top5, "images": result.images}
    return Row.of(name, kind, cost, **measured, data=data.fingerprint if data else None)


def planned_row(name: str, plan: Plan, cost: Profile, bytes_each: int) -> Row:
    """The line of a network that costs `cost` now, after `plan`; its numbers take `bytes_each` bytes."""
    params = sum(after - before for before, after in (p.params for p in plan.layers.values()))
    indices = sum(8 * s.channels for p in plan.layers.values() for s in p.chain if isinstance(s, Permutation))
    macs = sum(after - before for before, after in (p.macs for p in plan.layers.values()))
    size = cost.size_bytes + bytes_each * params + indices
    planned = dataclasses.replace(cost, params=cost.params + params, macs=cost.macs + macs, size_bytes=size)
    return make_row(name, "decomposed", planned, None, None)
