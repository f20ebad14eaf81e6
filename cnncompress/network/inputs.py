"""The inputs of a network, and their making from the batches of any loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnncompress.chains.spec import Pair
from cnncompress.errors import DataError
from cnncompress.network.copying import clone
from cnncompress.network.kinds import called_with, is_layer, kind_of
from cnncompress.network.run import inference

IMAGE_KEYS = ("image", "images", "pixel_values", "img", "imgs", "input", "inputs", "x", "data")
LABEL_KEYS = ("label", "labels", "target", "targets", "class", "classes", "y", "fine_label")
PLAIN_SIZE = 8  # the least height and width of what is taken for an image by its shape alone


# --- networks ---


def in_single(model: nn.Module) -> nn.Module:
    """A network in half precision as a copy in float32, others themselves."""
    half = any(t.dtype in (torch.float16, torch.bfloat16) for t in (*model.parameters(), *model.buffers()))
    return clone(model).float() if half else model


def float_types(model: nn.Module) -> dict[str, torch.dtype]:
    """The types of a network's parameters and buffers by name."""
    return {name: t.dtype for name, t in (*model.named_parameters(), *model.named_buffers())}


def with_types(model: nn.Module, types: Mapping[str, torch.dtype], usual: torch.dtype) -> nn.Module:
    """The network itself, its floating-point numbers rounded to the `types` of their names, or to the `usual` one."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(types.get(name, usual))
    return model


class _Reached(Exception):  # noqa: N818
    """Ends a forward pass at its first layer."""


def input_dtype(model: nn.Module) -> torch.dtype:
    """The floating-point type of a network's parameters, float32 where it has none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def input_channels(model: nn.Module, size: Pair) -> int:
    """The channels of the images of height and width `size` that a network takes, as its first layer shows.

    3 where the first layer that is called can take what such images give it, or where none of the numbers tried fits.
    """
    layers = [m for m in model.modules() if is_layer(m)]
    declared = next(filter(None, (kind_of(m).image_channels(m) for m in layers)), 1)
    tried: list[int] = []
    waiting = [3, 1, declared]
    while waiting:
        channels = waiting.pop(0)
        tried.append(channels)
        fits, wanted = _first_layer(model, layers, torch.zeros(1, channels, *size, dtype=input_dtype(model)))
        if fits:
            return channels
        if wanted and wanted not in tried:
            waiting.insert(0, wanted)
        waiting = [n for n in waiting if n not in tried]
    return 3


def _first_layer(model: nn.Module, layers: Sequence[nn.Module], image: Tensor) -> tuple[bool, int | None]:
    """Whether the first layer that is called on an image can take its input, and the channels it wants, if it says."""
    calls: list[tuple[bool, int | None]] = []

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kind = kind_of(module)
        calls.append((kind.takes(module, called_with(args, kwargs)), kind.image_channels(module)))
        raise _Reached

    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in layers]
    try:
        with inference(model):
            model(image)
    except _Reached:
        pass
    except Exception:
        return calls[0] if calls else (False, None)
    finally:
        for handle in handles:
            handle.remove()
    return calls[0] if calls else (True, None)


# --- batches ---


def read_batch(batch: Any, dtype: torch.dtype = torch.float32, labels: bool = True) -> tuple[Tensor, Tensor | None]:
    """Images [n, c, h, w] of type `dtype` and class indices [n] of what a loader gives; None where it gives no labels.

    A batch is a tensor or array of images, a sequence that starts with one, or a mapping with one under a usual name.
    Labels are the first thing beside the images that can be class indices; they are not looked for without `labels`.
    DataError in one line for anything else.
    """
    images, others = _parts(batch)
    images = _check_images(images).to(dtype)
    if not labels:
        return images, None
    for value in others:
        class_labels = _labels(value, len(images))
        if class_labels is not None:
            return images, class_labels
    return images, None


def _parts(batch: Any) -> tuple[Any, list[Any]]:
    """The images of a batch, and what may be its labels."""
    if isinstance(batch, Mapping):
        known = {str(key).lower(): value for key, value in batch.items()}
        key = next((key for key in IMAGE_KEYS if key in known), None)
        if key is None:
            names = ", ".join(map(str, batch)) or "nothing"
            raise DataError(f"a batch with {names} has no images; call them one of {', '.join(IMAGE_KEYS)}")
        return known[key], [known[name] for name in LABEL_KEYS if name in known]
    if isinstance(batch, tuple | list) and batch:
        if len(batch) > 1 and all(isinstance(x, Tensor) and x.dim() == 3 for x in batch):
            return _stack(batch), []
        return batch[0], list(batch[1:])
    return batch, []


def _stack(images: Sequence[Tensor]) -> Tensor:
    if len({image.shape for image in images}) > 1:
        raise DataError("the images of a batch have different sizes; bring them to one size before batching")
    return torch.stack(list(images))


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.ascontiguousarray(value))
    return value if isinstance(value, Tensor) else None


def _check_images(value: Any) -> Tensor:
    images = _tensor(value)
    if images is None:
        raise DataError(f"a batch holds {type(value).__name__} where images are expected: a tensor [n, c, h, w]")
    shape = "×".join(map(str, images.shape)) or "a scalar"
    alone = images.dim() == 3 and images.shape[0] in (1, 3, 4) and min(images.shape[1:]) >= PLAIN_SIZE
    if images.dim() < 2 or alone:
        raise DataError(f"a batch of images is [n, c, h, w], not {shape}; one image alone is image[None]")
    if images.dim() == 4 and _has_channels_last(*images.shape[1:]):
        raise DataError(f"a batch of images is [n, c, h, w], and {shape} has the channels last: permute(0, 3, 1, 2)")
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise DataError(f"the images are {kind}: give what the network takes, such as (images / 255 - mean) / std")
    return images


def _has_channels_last(first: int, second: int, third: int) -> bool:
    """Whether an image of these sizes is more likely [h, w, c] than [c, h, w]: networks may take many channels."""
    square = first == second and third in (1, 3, 4)
    return first > 4 and second != third and (square or (third in (3, 4) and second >= PLAIN_SIZE))


def _labels(value: Any, count: int) -> Tensor | None:
    """Class indices [n] where `value` can be them: integers, whole numbers, or one-hot rows."""
    if isinstance(value, tuple | list) and value and all(isinstance(v, int | np.integer) for v in value):
        value = torch.tensor([int(v) for v in value])
    labels = _tensor(value)
    if labels is None or labels.dim() == 0 or len(labels) != count:
        return None
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dim() == 2 and bool(((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all()):
        return labels.long().argmax(1)
    if labels.dim() != 1 or bool((labels.double() % 1 != 0).any()):
        return None
    return labels.long()
