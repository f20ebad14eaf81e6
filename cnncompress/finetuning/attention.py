"""Attention transfer: a network learns where its teacher's feature maps are large (Zagoruyko and Komodakis 2017)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from cnncompress.errors import UsageError
from cnncompress.network.inputs import input_dtype
from cnncompress.network.run import forward, inference

ATTENTION_WEIGHT = 1000.0  # of the mean over all maps (Crowley et al. 2018, as SECL)


def attention(features: Tensor) -> Tensor:
    """The attention map [n, H·W] of features [n, c, H, W]: the mean square over channels, of Euclidean norm one."""
    return F.normalize(features.float().square().mean(1).flatten(1))


def attention_loss(features: Sequence[Tensor], expected: Sequence[Tensor]) -> Tensor:
    """The mean square of the differences of attention maps, summed over the images and averaged over the maps.

    Each of `features` [n, c, H, W] is compared with that of the teacher in `expected`, [n, c', H, W] with any number of
    channels, or its attention map [n, H·W]. UsageError where they are not as many, or not of the same positions.
    """
    maps, wanted = ([attention(x) if x.dim() == 4 else x for x in both] for both in (features, expected))
    shapes = [[tuple(x.shape) for x in both] for both in (maps, wanted)]
    if shapes[0] != shapes[1] or not maps:
        raise UsageError(
            f"attention maps need the same images and positions in both networks: {shapes[0]} and {shapes[1]}"
        )
    terms = [(a - b).square().mean(1).sum() for a, b in zip(maps, wanted, strict=True)]
    return sum(terms[1:], terms[0]) / len(terms)


def places(network: nn.Module, teacher: nn.Module, images: Tensor) -> list[str]:
    """The modules whose outputs are compared: of both networks the last one of each height and width, in order.

    Those are the ends of the groups of a residual network, and the layers before the pools of a VGG. A module counts
    that both networks have, that is called once, and whose output [n, c, H, W] has more than one position. `images` is
    a batch for both. UsageError where there is none.
    """
    ours, theirs = _sizes(network, images), _sizes(teacher, images)
    last: dict[tuple[int, ...], str] = {}
    for name, size in ours.items():
        if theirs.get(name) == size and size[0] * size[1] > 1:
            last.pop(size, None)
            last[size] = name
    if not last:
        raise UsageError(
            f"{type(network).__name__} shares no module with its teacher that gives a feature map; give --distill "
            "logits, which compares the answers alone"
        )
    return list(last.values())


def _sizes(network: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """Height and width of the outputs [n, c, H, W] of the modules that are called once, in the order they end in."""
    sizes: dict[str, tuple[int, ...]] = {}
    calls: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(output, Tensor) and output.dim() == 4:
                sizes[name] = tuple(output.shape[2:])

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in network.named_modules()]
    device = next((p.device for p in network.parameters()), images.device)
    try:
        with inference(network):
            forward(network, images.to(device, input_dtype(network)))
    finally:
        for handle in handles:
            handle.remove()
    return {name: size for name, size in sizes.items() if calls[name] == 1}


@contextmanager
def watched(network: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """A list that holds the outputs of the modules `names`, in this order, after a forward pass within the block."""
    found: list[Any] = [None] * len(names)

    def watch(position: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            found[position] = output

        return hook

    handles = [network.get_submodule(name).register_forward_hook(watch(i)) for i, name in enumerate(names)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
