"""One streaming pass over calibration images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnncompress.errors import CompressError, DataError, NoGradientError, UsageError, nearest
from cnncompress.metrics import LayerStatistics
from cnncompress.names.metrics import OF_INPUTS
from cnncompress.network.device import resolve_device
from cnncompress.network.evaluate import check_labels
from cnncompress.network.inputs import in_single, input_dtype, read_batch
from cnncompress.network.kinds import called_with, known_kinds, weight_of
from cnncompress.network.layers import layers_of, refuse_module
from cnncompress.network.meaning import Meaning, meaning_of
from cnncompress.network.parts import images_at_once
from cnncompress.network.positions import image_seeds
from cnncompress.network.processes import everyone, processes
from cnncompress.network.run import forward, inference, run
from cnncompress.statistics.layers import LayerSums
from cnncompress.statistics.wanted import Wanted, instead_of
from cnncompress.terminal.console import bar

# Positions an image. Measured by top-1 after channel-svd under data covariance, without any fine-tuning (ResNet-20 on
# CIFAR-10, 1000 images, half the MACs; SqueezeNet 1.0 on ImageNet, 31 images, two thirds): 8 positions give 61.3 to
# 62.4 and 44.5 to 46.1 %, 32 give 63.2 to 63.5 and 50.7 to 53.6 % (two seeds), 128 give 62.6 and 53.6 %. More takes two
# to ten times as long and tells no more, as neighbouring patches overlap: more images are what helps.
POSITIONS = 32
WRONG_CLASSES = 3  # as in Denton et al. 2014
CONSTANT_SHARE = 1e-12  # of the mean square: a variance below it is that of a constant
PIXELS_AT_ONCE = 2**19  # at most, whatever the loader's batches are: what gradients need stays in memory


def collect_statistics(
    model: nn.Module,
    loader: Iterable[Any],
    metric: str | Iterable[str] = OF_INPUTS,
    *,
    layers: Iterable[str] | None = None,
    positions: int | None = POSITIONS,
    seed: int = 0,
    images: int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> dict[str, LayerStatistics]:
    """Collect the statistics that the metrics named by `metric` need, for each layer that the network calls.

    `loader` gives batches of images as `inputs.read_batch` takes them; only some metrics use labels. The network, or a
    copy in float32 of one in half precision, runs in eval mode on `device`, where the network stays, and is otherwise
    left as it was. `layers` are names as in `network.layers.layers_of`, by default all; those that cannot be swapped or
    are never called are left out.

    `positions` patches are looked at in each image and call of a layer (None: all); which ones depends on `seed` and
    the image's pixels alone. `images` limits the number of images, `progress` shows a bar on a terminal. With
    torch.distributed set up, each process gives its share of the images to `loader`, and all get the result that one
    process would get from the whole.

    Raises UsageError for unknown names, numbers below 1 and missing labels, DataError where there are no images or a
    label is not a class, CompressError for activations that are not finite and networks that cannot be run,
    NoGradientError where no gradient comes to the layers.
    """
    wanted = Wanted.by(metric)
    chosen = _select(model, layers)
    for what, number in (("positions", positions), ("images", images)):
        if number is not None and number < 1:
            raise UsageError(f"the number of calibration {what} must be at least 1, not {number}")
    device = resolve_device(device)
    if not wanted.needs or not chosen:
        return {}
    model.to(device)
    if (precise := in_single(model)) is not model:
        model, chosen = precise, _select(precise, chosen)
    sums = {n: LayerSums(n, m, wanted.needs) for n, m in chosen.items()}
    collector = _Collector(model, sums, wanted, positions, seed)
    error = None
    try:
        collector.run(loader, _share(images), progress)
    except CompressError as failure:  # the other processes wait for this one
        error = failure
    seen = {name for name, sums in collector.sums.items() if sums.called}
    reports = everyone((error, collector.images, collector.classes, seen, collector.spread.tolist()))
    for report in reports:
        if report[0] is not None:
            raise report[0]
    total, classes = sum(r[1] for r in reports), max(r[2] for r in reports)
    if not total:
        raise DataError("no images to collect statistics from; check the data set")
    called = set().union(*(r[3] for r in reports))
    wrong = min(WRONG_CLASSES, classes - 1)
    results = {name: sums.result(total, wrong) for name, sums in collector.sums.items() if name in called}
    if "gradient" in wanted:
        _finish_gradients(results, collector.meaning, [r[4] for r in reports], wanted.asker("gradient"))
    return results


def _finish_gradients(
    results: dict[str, LayerStatistics], meaning: Meaning, sums: list[list[float]], metric: str
) -> None:
    """Have the gradients be those of answers in units of their spread, where they are numbers.

    `sums` has the number of the answers, their sum and their sum of squares for each process. CompressError where all
    gradients are zero: `metric` needs them.
    """
    count, total, squares = (sum(values) for values in zip(*sums, strict=True))
    variance = squares / count - (total / count) ** 2 if count else 0.0
    scale = 1 / variance if meaning.kind == "numbers" and variance > CONSTANT_SHARE * squares / count else 1.0
    gradients = [s.gradient for s in results.values() if s.gradient is not None]
    for gradient in gradients:
        gradient.mul_(scale)
    if gradients and not any(bool(gradient.any()) for gradient in gradients):
        raise NoGradientError(
            f"the metric {metric} says nothing about this network: the gradients of its answers are all zero, as "
            f"behind quantised layers and rounding; give --metric {instead_of('gradient')}"
        )


def _select(model: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Module]:
    known = layers_of(model)
    wanted = set(known) if names is None else set(names)
    for name in sorted(wanted - set(known)):
        raise UsageError(f"the network has no {known_kinds('or')} called '{name}'{nearest(name, known)}")
    return {name: m for name, m in known.items() if name in wanted and refuse_module(m) is None}


def _share(images: int | None) -> int | None:
    """This process's part of a number of images that are dealt out one by one."""
    rank, world = processes()
    return None if images is None else (images - rank + world - 1) // world


class _Collector:
    """Watches the layers of a network and fills their sums."""

    def __init__(
        self, model: nn.Module, sums: dict[str, LayerSums], wanted: Wanted, positions: int | None, seed: int
    ) -> None:
        self.model, self.sums, self.wanted, self.positions, self.seed = model, sums, wanted, positions, seed
        self.seeds: list[int] = []  # of the images whose layer inputs are wanted
        self.calls: dict[str, int] = {}
        self.images = self.classes = 0
        self.meaning = Meaning()
        self.spread = torch.zeros(3, dtype=torch.float64)  # number, sum and sum of squares of the answers
        self.device = weight_of(next(iter(sums.values())).module).device

    def run(self, loader: Iterable[Any], limit: int | None, progress: bool) -> None:
        """Take in the first `limit` images of a loader."""
        with bar(progress=progress, total=limit, desc="statistics", unit="image", leave=False) as seen, self._hooks():
            if limit == 0:
                return
            for batch in loader:
                images, labels = read_batch(batch, input_dtype(self.model), labels="sensitivity" in self.wanted)
                if labels is None and "sensitivity" in self.wanted:
                    metric, other = self.wanted.asker("sensitivity"), instead_of("sensitivity")
                    raise UsageError(f"the metric {metric} needs labelled images; give them, or take {other}")
                images = images[: None if limit is None else limit - self.images]
                if len(images):
                    if not self.images and "gradient" in self.wanted:
                        self.meaning = meaning_of(self.model, images[:1].to(self.device))
                    pixels = images[0, 0].numel()
                    part = min(max(1, PIXELS_AT_ONCE // max(1, pixels)), images_at_once(pixels, self.device))
                    for start in range(0, len(images), part):
                        stop = slice(start, start + part)
                        self._add(images[stop], None if labels is None else labels[stop])
                        seen.update(len(images[stop]))
                if self.images == limit:
                    return

    def _add(self, images: Tensor, labels: Tensor | None) -> None:
        seeds = image_seeds(images, self.seed)
        images = images.detach().to(self.device)
        if "moment" in self.wanted:
            self.seeds, self.calls = seeds, {}
            if "gradient" in self.wanted:
                self._backward(images, seeds)
            else:
                run(self.model, images)
            self.seeds = []
        if labels is not None and "sensitivity" in self.wanted:
            for i in range(len(images)):
                self._add_sensitivity(images[i : i + 1], labels[i : i + 1])
        self.images += len(images)

    def _scores(self, images: Tensor) -> Tensor:
        scores = forward(self.model, images)
        if "sensitivity" in self.wanted and scores.dim() != 2:
            raise CompressError(f"the network returns logits of shape {tuple(scores.shape)}, not [images, classes]")
        if scores.isnan().any():
            raise CompressError("the network's outputs are not finite; check the images and the weights")
        self.classes = scores.shape[1] if scores.dim() == 2 else 1
        return scores

    def _backward(self, images: Tensor, seeds: list[int]) -> None:
        """Send back the gradient of each image's loss; the hooks take it in.

        In eval mode the output of an image depends on that image alone, so the sum of the losses gives the gradient
        of each one's own.
        """
        with torch.enable_grad(), _backward_errors(self.model):
            scores = self._scores(images.requires_grad_().clone())
            numbers = scores.detach().double()
            self.spread += torch.stack([torch.ones_like(numbers).sum(), numbers.sum(), numbers.square().sum()]).cpu()
            self.meaning.sampled_loss(scores, seeds).backward()

    def _add_sensitivity(self, image: Tensor, label: Tensor) -> None:
        """Take in the gradients of one image [1, ...] toward the most probable of its wrong classes."""
        weights = [weight_of(s.module) for s in self.sums.values()]
        try:
            for weight in weights:
                weight.requires_grad_(True)
            with torch.enable_grad(), _backward_errors(self.model):
                scores = self._scores(image)[0]
                check_labels(label, self.classes)
                if self.classes < 2:
                    metric = self.wanted.asker("sensitivity")
                    raise CompressError(f"the metric {metric} needs a network of two classes or more")
                wrong = scores.detach().clone()
                wrong[label] = -torch.inf
                for target in wrong.topk(min(WRONG_CLASSES, self.classes - 1)).indices:
                    loss = F.cross_entropy(scores, target)
                    gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
                    for sums, gradient in zip(self.sums.values(), gradients, strict=True):
                        sums.add_sensitivity(gradient)
        finally:
            for weight in weights:
                weight.requires_grad_(False)

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        """Watch the layers of the network, in eval mode and without gradients at its parameters."""
        fused = torch.backends.mha.get_fastpath_enabled()
        flags = [(p, p.requires_grad) for p in self.model.parameters()]
        handles = [s.module.register_forward_hook(self._hook(s), with_kwargs=True) for s in self.sums.values()]
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # fused transformer layers are invisible to hooks
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            with inference(self.model):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            for handle in handles:
                handle.remove()
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    def _hook(self, sums: LayerSums) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            x = called_with(args, kwargs).detach()
            if x.numel() and not all(torch.isfinite(v) for v in x.aminmax()):
                raise CompressError(f"the input of layer {sums.name} is not finite; check the images and the weights")
            sums.called = True
            if not self.seeds:
                return None
            call = self.calls[sums.name] = self.calls.get(sums.name, -1) + 1
            sums.add_inputs(x, self.seeds, call, self.positions)
            return self._watch(sums, output) if "gradient" in self.wanted else None

        return hook

    def _watch(self, sums: LayerSums, output: Tensor) -> Tensor:
        """Have the gradient at the output of a layer taken in."""
        if not torch.is_grad_enabled():
            raise NoGradientError(
                f"the network runs layer {sums.name} without gradients, which the metric "
                f"{self.wanted.asker('gradient')} needs: take the metric {instead_of('gradient')}, or no torch.no_grad "
                "in its forward pass"
            )
        if not output.requires_grad:  # its input does not depend on the image
            output.requires_grad_()
        if output.is_leaf or output._is_view():  # a later in-place operation would fail, or lose the gradient
            output = output.clone()
        output.register_hook(sums.add_gradient)
        return output


@contextmanager
def _backward_errors(model: nn.Module) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        raise NoGradientError(f"the backward pass of {type(model).__name__} fails: {reason}") from error
