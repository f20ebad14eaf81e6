"""Reading images: data sets that skip what cannot be read, and batches for evaluation."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2

from cnncompress.data.kept import Kept
from cnncompress.data.modes import in_mode
from cnncompress.errors import DataError
from cnncompress.network.preprocessing import Preprocessing
from cnncompress.terminal.console import LOG
from cnncompress.text import first_line

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
NAMES_SHOWN = 3
KEPT_BYTES = 2**26  # of a whole set: one as small is decoded once for all networks that it is evaluated with

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of Pillow, by the channels of the network

Item = tuple[torch.Tensor, int]


class UnreadableError(DataError):
    """An image that cannot be read: its name and the reason."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read image {self.name}: {self.reason}"


def evaluation_transform(preprocessing: Preprocessing) -> Callable[[Image.Image], torch.Tensor]:
    """The transform of an image to a normalised tensor `[c, H, W]`, as torchvision's presets do it."""
    return v2.Compose([*geometry(preprocessing), *normalisation(preprocessing)])


def geometry(preprocessing: Preprocessing) -> list[Callable[..., Any]]:
    """The steps that bring an image to the size of the network, as at evaluation."""
    interpolation = v2.InterpolationMode(preprocessing.interpolation)
    if preprocessing.resize is None:
        return [v2.Resize(preprocessing.size, interpolation=interpolation)]
    return [v2.Resize([preprocessing.resize], interpolation=interpolation), v2.CenterCrop(preprocessing.size)]


def normalisation(preprocessing: Preprocessing) -> list[Callable[..., Any]]:
    """The steps from an image to a normalised tensor."""
    return [
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(preprocessing.mean), list(preprocessing.std)),
    ]


class Images(Dataset[Any]):
    """Images with labels, read when asked for. An item is `(image [c, H, W], class index)`.

    `read(i)` gives a PIL image; `positions` are the numbers `i` that belong to this set, and `names` and `labels`
    are those of the whole collection, by the same numbers. `skipped` maps the name of every image that turned out
    to be unreadable in this process to the reason. The items of a small set are kept once they were read.
    """

    fixed = True  # items are the same in every epoch

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
        if preprocessing.channels not in MODES:
            raise DataError(f"image files have 1, 3 or 4 channels, and the network takes {preprocessing.channels}")
        self.preprocessing = preprocessing
        self.positions = range(len(names)) if positions is None else positions
        self.skipped: dict[str, str] = {}
        self.reported: set[str] = set()
        self._transform = evaluation_transform(preprocessing)
        self._kept: Kept[torch.Tensor] = Kept()

    def __len__(self) -> int:
        return len(self.positions)

    def name(self, index: int) -> str:
        """The name of item `index`: a path, or a number in a collection without files."""
        return self.names[self.positions[index]]

    def label(self, index: int) -> int:
        """The class index of item `index`, without reading the image."""
        return self.labels[self.positions[index]]

    def image(self, index: int) -> Image.Image:
        """The image of item `index`, in the channels of the network; UnreadableError where it cannot be read."""
        try:
            return in_mode(self.read(self.positions[index]), MODES[self.preprocessing.channels])
        except UNREADABLE as error:
            name, reason = self.name(index), getattr(error, "strerror", None) or first_line(error)
            self.skipped[name] = reason
            raise UnreadableError(name, reason) from error

    def __getitem__(self, index: int) -> Item:
        image = self._kept.item(
            index, lambda: self._transform(self.image(index)), lambda made: len(self) * made.nbytes <= KEPT_BYTES
        )
        return image.clone() if index in self._kept.items else image, self.label(index)

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
            except UnreadableError:
                continue
        name, reason = next(iter(self.skipped.items()))
        raise DataError(f"{where}: none of the {len(self)} images can be read (first: {name}: {reason})")


class _Unread(NamedTuple):
    """Takes the place of an image that cannot be read; it travels between processes."""

    name: str
    reason: str


class _Attempts(Dataset[Any]):
    """The items of a set with their positions, and `_Unread` in the place of what cannot be read."""

    def __init__(self, dataset: Dataset[Any], indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[int, Any]:
        try:
            return i, self.dataset[self.indices[i]]
        except UnreadableError as error:
            return i, _Unread(error.name, error.reason)


def _collate(items: list[tuple[int, Any]], channels_last: bool) -> tuple[Any, list[int], list[_Unread]]:
    """The readable items as one batch (None where there are none), their positions, and the unreadable items."""
    good = [(position, item) for position, item in items if not isinstance(item, _Unread)]
    bad = [item for _, item in items if isinstance(item, _Unread)]
    batch = collate([item for _, item in good]) if good else None
    if batch is not None and channels_last:
        batch = [batch[0].contiguous(memory_format=torch.channels_last), *batch[1:]]
    return batch, [position for position, _ in good], bad


def collate(items: list[Any]) -> Any:
    """The items of a set as a batch; DataError for items that no batch can hold."""
    try:
        return default_collate(items)
    except (TypeError, RuntimeError) as error:
        raise DataError(
            f"the items of the data set make no batch: {first_line(error)}; give tensors of one size"
        ) from error


class Loader:
    """Batches `(images [n, c, H, W], labels [n])` in a fixed order; what cannot be read is left out and reported.

    `read` are the positions of the items that the last pass gave, among all that are asked for.
    """

    def __init__(
        self, dataset: Dataset[Any], batch_size: int, workers: int, indices: Sequence[int], channels_last: bool
    ) -> None:
        self.dataset = dataset
        attempts = _Attempts(dataset, indices)
        self.read: list[int] = []
        together = partial(_collate, channels_last=channels_last)
        self._batches = DataLoader(attempts, batch_size=batch_size, num_workers=workers, collate_fn=together)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        for batch, _ in self.numbered():
            yield batch

    def numbered(self) -> Iterator[tuple[Any, list[int]]]:
        """The batches, each with the positions of its items among all that are asked for."""
        self.read = []
        skipped: dict[str, str] = {}
        for good, positions, bad in self._batches:
            skipped.update(bad)
            if good is not None:
                self.read += positions
                yield good, positions
        if isinstance(self.dataset, Images):
            self.dataset.skipped.update(skipped)
            report_skipped(self.dataset, skipped)
        if skipped and not self.read:
            raise DataError(f"none of the {len(skipped)} images can be read (first: {next(iter(skipped))})")


def make_loader(
    dataset: Any,
    batch_size: int,
    *,
    workers: int = 0,
    indices: Sequence[int] | None = None,
    channels_last: bool = False,
) -> Loader:
    """Batches `(images [n, c, H, W], labels [n])` for evaluation, in the order of the set or of `indices`.

    `dataset` is `Images` or another map-style set, whose items torch's own collation puts together; so many `workers`
    decode them, 0 for this process itself. Images that cannot
    be read are left out; at the end of a pass they are in `dataset.skipped` and one warning counts those not
    reported before and names the first few. DataError where not one of them can be read.
    With `channels_last` the batches of `Images` are in that order in memory.
    """
    return Loader(dataset, batch_size, workers, range(len(dataset)) if indices is None else indices, channels_last)


def report_skipped(images: Images, skipped: dict[str, str]) -> None:
    """Warn in one line about those of the `skipped` images (name → reason) that no line has named before."""
    new = {name: reason for name, reason in skipped.items() if name not in images.reported}
    if not new:
        return
    images.reported.update(new)
    first = ", ".join(f"{name} ({reason})" for name, reason in list(new.items())[:NAMES_SHOWN])
    more = ", ..." if len(new) > NAMES_SHOWN else ""
    line = f"warning: skipped {len(new)} of {len(images)} images that cannot be read: {first}{more}"
    LOG.warning("%s", line)
