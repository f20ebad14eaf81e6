"""The names of data sets, checked without importing torch, so that a wrong one is answered at once."""

from __future__ import annotations

from pathlib import Path

from cnncompress.errors import DataError, UsageError, nearest

BUILTIN_SETS = ("digits", "photodigits")
TORCHVISION_SETS = tuple(
    """
    cifar10 cifar100 country211 dtd fashionmnist fgvcaircraft flowers102 food101 gtsrb imagenet kmnist mnist
    oxfordiiitpet stanfordcars stl10 svhn
    """.split()  # noqa: SIM905
)


def check_data(spec: str) -> None:
    """DataError or UsageError where `spec` cannot be a data set; what passes may still turn out to be none."""
    kind, colon, root = spec.partition(":")
    if kind in BUILTIN_SETS:
        return
    if is_torchvision(spec):
        if not root:
            raise UsageError(f"{kind} needs the folder of its files: {kind}:FOLDER")
        if not Path(root).exists():
            raise DataError(
                f"cannot open {kind} in {root}: no such folder (nothing is downloaded: put its files there)"
            )
        return
    path = Path(spec)
    if path.is_dir():
        return
    if path.exists():
        raise DataError(f"{spec} is a file; data are a folder of class folders, NAME:FOLDER or digits")
    if colon and "/" not in kind:
        known = ", ".join([*TORCHVISION_SETS, *BUILTIN_SETS])
        raise UsageError(f"unknown data set '{kind}'{nearest(kind.lower(), TORCHVISION_SETS)} (known: {known})")
    raise DataError(f"no such folder: {spec}{nearest(spec, [*TORCHVISION_SETS, *BUILTIN_SETS])}")


def is_torchvision(spec: str) -> bool:
    """Whether a set of torchvision is meant, and no folder that is called as one is."""
    kind, colon, _ = spec.partition(":")
    return kind.lower() in TORCHVISION_SETS and not (Path(spec).is_dir() and not colon)
