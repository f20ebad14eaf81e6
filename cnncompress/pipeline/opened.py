"""From a name or a run to a network: what every command starts with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from cnncompress.errors import CompressError, RunError, UsageError
from cnncompress.models import LoadedModel, list_models, load_model
from cnncompress.models.sources import PROGRAM_ONLY
from cnncompress.names.models import SUFFIXES
from cnncompress.network.compressed import Compressed
from cnncompress.network.inputs import input_dtype
from cnncompress.network.preprocessing import Preprocessing
from cnncompress.network.provenance import Provenance
from cnncompress.network.run import inference, logits, run
from cnncompress.pipeline.asked import NetworkAsked
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
    def compressed(self) -> Compressed:
        """The network with its provenance."""
        return Compressed(self.model, self.provenance.plan, self.provenance)

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


def open_network(asked: NetworkAsked) -> Opened:
    """The network that is asked for: a name, a factory or a run directory."""
    name = asked.name
    if name is None:
        raise UsageError("no network: give MODEL, or `model:` in the config")
    if _means_run(name):
        return open_run(Path(name), asked)
    loaded: LoadedModel = load_model(
        name,
        asked.weights,
        num_classes=asked.num_classes,
        input_size=asked.input_size,
        mean=asked.mean,
        std=asked.std,
        arguments=dict(asked.arguments),
        seed=asked.seed,
    )
    short = name.rsplit(":", 1)[-1] if loaded.source.kind != "torchvision" else name
    opened = Opened(
        short, loaded.model, loaded.preprocessing, loaded.provenance, loaded.weights, None, _assumed(loaded, asked)
    )
    LOG.info(opened.taken_for)
    return opened


def _assumed(loaded: LoadedModel, asked: NetworkAsked) -> tuple[str, ...]:
    """The options that could have told of the input what a function's network, or a change of it, leaves open."""
    given = {"input-size": asked.input_size, "mean": asked.mean, "std": asked.std}
    known = loaded.source.kind != "factory"
    usual = known and loaded.preprocessing.channels == 3
    told = {"input-size": known, "mean": usual, "std": usual}
    return tuple(option for option, value in given.items() if value is None and not told[option])


def _means_run(name: str) -> bool:
    if is_run(name):
        return True
    path_like = "/" in name and ":" not in name and not name.lower().endswith((".py", *SUFFIXES))
    return name not in list_models() and (path_like or Path(name).is_dir())


def open_run(path: Path, asked: NetworkAsked | None = None) -> Opened:
    """The network of a run; UsageError for what only a network by name can follow."""
    asked = asked or NetworkAsked()
    run = load_run(path, asked.trust_code)
    if run.note:
        LOG.warning(plain(run.note))
    own = NetworkAsked()
    for field, flag in (("weights", "weights"), ("num_classes", "num-classes"), ("arguments", "model-arg")):
        if getattr(asked, field) != getattr(own, field):
            raise UsageError(f"{path} is a run, with weights and classes of its own; leave out --{flag}")
    prepared = (run.preprocessing or Preprocessing()).changed(asked.input_size, asked.mean, asked.std)
    origin = dataclasses.replace(run.provenance, preprocessing=prepared)
    opened = Opened(str(run.info.get("name", path.name)), run.model, prepared, origin, f"run {path}", run)
    LOG.info(opened.taken_for)
    return opened


def is_program(opened: Opened) -> bool:
    """True where a run was opened as a program, of which there are no layers."""
    source = opened.provenance.source
    return source is not None and source.kind == "program"


def with_code(opened: Opened) -> str:
    """How to have the network of a run that was opened as a program; empty where there is nothing but the program."""
    built = opened.run is not None and opened.run.info["source"]["kind"] == "factory"
    return f"give --trust-code where {opened.provenance.source.name} is at hand" if built else ""


def need_layers(opened: Opened, doing: str) -> None:
    """RunError where a run was opened as a program, of which there are no layers."""
    if is_program(opened):
        remedy = with_code(opened)
        raise RunError(f"cannot {doing} {opened.weights}: {PROGRAM_ONLY}{f'; {remedy}' if remedy else ''}")


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
