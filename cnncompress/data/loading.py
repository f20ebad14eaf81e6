"""Reading images: data sets that skip what cannot be read, batches for evaluation, augmentation for training."""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from tqdm import tqdm

from cnncompress.errors import DataError
from cnncompress.spec import Preprocessing

# What Pillow's decoders raise on damaged files.
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
NAMED = 3
SMALL = 64

Item = tuple[torch.Tensor, int]


def evaluation_transform(preprocessing: Preprocessing) -> Callable[[Image.Image], torch.Tensor]:
    """The transform of an RGB image to a normalised tensor `[3, H, W]`, as torchvision's presets do it."""
    return v2.Compose([*_geometry(preprocessing), *_normalisation(preprocessing)])


def _geometry(preprocessing: Preprocessing) -> list[Callable]:
    interpolation = v2.InterpolationMode(preprocessing.interpolation)
    if preprocessing.resize is None:
        return [v2.Resize(preprocessing.size, interpolation=interpolation)]
    return [v2.Resize([preprocessing.resize], interpolation=interpolation), v2.CenterCrop(preprocessing.size)]


def _normalisation(preprocessing: Preprocessing) -> list[Callable]:
    return [
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(preprocessing.mean), list(preprocessing.std)),
    ]


class Images(Dataset):
    """Images with labels, read when asked for. An item is `(image [3, H, W], class index)`.

    `read(i)` gives a PIL image; `positions` are the numbers `i` that belong to this set, and `names` and `labels`
    are those of the whole collection, by the same numbers. `skipped` maps the name of every image that turned out
    to be unreadable in this process to the reason.
    """

    def __init__(
        self,
        read: Callable[[int], Image.Image],
        names: Sequence[str],
        labels: Sequence[int],
        preprocessing: Preprocessing,
        positions: Sequence[int] | None = None,
    ) -> None:
        self.read = read
        self.names = names
        self.labels = labels
        self.preprocessing = preprocessing
        self.positions = range(len(names)) if positions is None else positions
        self.skipped: dict[str, str] = {}
        self._transform = evaluation_transform(preprocessing)

    def __len__(self) -> int:
        return len(self.positions)

    def name(self, index: int) -> str:
        """The name of item `index`: a path, or a number in a collection without files."""
        return self.names[self.positions[index]]

    def label(self, index: int) -> int:
        """The class index of item `index`, without reading the image."""
        return self.labels[self.positions[index]]

    def image(self, index: int) -> Image.Image:
        """The RGB image of item `index`; DataError where it cannot be read."""
        try:
            image = self.read(self.positions[index])
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")
            return image.convert("RGB")
        except UNREADABLE as error:
            name, reason = self.name(index), str(error).partition("\n")[0] or type(error).__name__
            self.skipped[name] = reason
            raise DataError(f"cannot read image {name}: {reason}") from error

    def __getitem__(self, index: int) -> Item:
        return self._transform(self.image(index)), self.label(index)

    def subset(self, indices: Sequence[int]) -> Images:
        """The items at `indices`, as a set of their own."""
        positions = [self.positions[i] for i in indices]
        return Images(self.read, self.names, self.labels, self.preprocessing, positions)

    def require_one(self, where: str) -> None:
        """DataError unless at least one image can be read; stops at the first that can."""
        for index in range(len(self)):
            try:
                self.image(index)
                return
            except DataError:
                continue
        name, reason = next(iter(self.skipped.items()))
        raise DataError(f"{where}: none of the {len(self)} images can be read (first: {name}: {reason})")


class _Attempts(Dataset):
    """The items of a set, with `(index, reason)` in the place of what cannot be read: it travels between processes."""

    def __init__(self, images: Images, indices: Sequence[int] | None) -> None:
        self.images = images
        self.indices = range(len(images)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Item | tuple[int, str]:
        index = self.indices[i]
        try:
            return self.images[index]
        except DataError:
            return index, self.images.skipped[self.images.name(index)]


def _collate(items: list[Any]) -> tuple[list[Item], list[tuple[int, str]]]:
    good = [item for item in items if isinstance(item[0], torch.Tensor)]
    bad = [item for item in items if not isinstance(item[0], torch.Tensor)]
    return good, bad


class Loader:
    """Batches `(images [n, 3, H, W], labels [n])` in a fixed order; what cannot be read is left out and reported."""

    def __init__(self, images: Images, batch_size: int, workers: int, indices: Sequence[int] | None) -> None:
        self.images = images
        self._batches = DataLoader(
            _Attempts(images, indices), batch_size=batch_size, num_workers=workers, collate_fn=_collate
        )

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        found = False
        new: dict[str, str] = {}
        for good, bad in self._batches:
            new.update({self.images.name(index): reason for index, reason in bad})
            if good:
                found = True
                yield torch.stack([image for image, _ in good]), torch.tensor([label for _, label in good])
        self.images.skipped.update(new)
        if new:
            warn_skipped(new, len(self._batches.dataset))  # type: ignore[arg-type]
        if not found and new:
            raise DataError(f"none of the {len(new)} images can be read (first: {next(iter(new))})")


def make_loader(dataset: Images, batch_size: int, *, workers: int = 0, indices: Sequence[int] | None = None) -> Loader:
    """Batches `(images [n, 3, H, W], labels [n])` for evaluation, in the order of the set or of `indices`.

    Images that cannot be read are left out; at the end of a pass they are in `dataset.skipped` and one line on
    stderr counts them and names the first few. DataError where not one of them can be read.
    """
    return Loader(dataset, batch_size, workers, indices)


def warn_skipped(skipped: dict[str, str], total: int) -> None:
    """Write one line to stderr: how many of `total` images were skipped, and the first few with their reasons."""
    first = ", ".join(f"{name} ({reason})" for name, reason in list(skipped.items())[:NAMED])
    more = ", ..." if len(skipped) > NAMED else ""
    tqdm.write(f"warning: skipped {len(skipped)} of {total} images that cannot be read: {first}{more}", file=sys.stderr)


class Augmented(Dataset):
    """A set for training: random shift (images up to 64 pixels) or random resized crop, and horizontal flip.

    The random numbers of an item follow from `(seed, epoch, index)` alone, so that neither the number of workers or
    processes nor an interruption changes what is seen. An image that cannot be read gives its place to the next one
    that can, so batches stay whole.
    """

    def __init__(self, dataset: Images, preprocessing: Preprocessing, *, flip: bool, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.epoch = 0
        steps: list[Callable] = []
        size = preprocessing.size
        if max(size) <= SMALL:
            steps += [
                *_geometry(preprocessing),
                v2.RandomCrop(size, padding=[size[1] // 8, size[0] // 8], padding_mode="edge"),
            ]
        else:
            interpolation = v2.InterpolationMode(preprocessing.interpolation)
            steps.append(v2.RandomResizedCrop(size, scale=(0.35, 1.0), interpolation=interpolation))
        if flip:
            steps.append(v2.RandomHorizontalFlip())
        self._transform = v2.Compose([*steps, *_normalisation(preprocessing)])

    def set_epoch(self, epoch: int) -> None:
        """Choose the random numbers of an epoch; call it before the epoch's iterator (and its workers) start."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Item:
        image, source = self._readable(index)
        entropy = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1, np.uint64)[0]
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: that would also reset the generator of a GPU, and with it dropout.
            torch.default_generator.manual_seed(int(entropy >> np.uint64(1)))
            return self._transform(image), self.dataset.label(source)

    def _readable(self, index: int) -> tuple[Image.Image, int]:
        """The first image from `index` on that can be read, and its index."""
        for step in range(len(self)):
            source = (index + step) % len(self)
            name = self.dataset.name(source)
            known = name in self.dataset.skipped
            try:
                return self.dataset.image(source), source
            except DataError:
                if not known:
                    warn_skipped({name: self.dataset.skipped[name]}, len(self))
        raise DataError(f"none of the {len(self)} training images can be read (first: {name})")
