"""The format of a file of weights, recognised by its first bytes and not by its name."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Literal

from cnncompress.errors import CompressError

HEAD_BYTES = 1024
LARGEST_HEADER = 100_000_000  # bytes, as the safetensors format has it
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7-Zip",
    b"Rar!": "RAR",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}
CONVERT = "load it where it was made and save the network's weights as a PyTorch state dict or safetensors"
JOIN = "put the tensors of all of them into one file, by safetensors.torch.load_file and save_file"
PART = re.compile(r"-\d+-of-\d+\.[^/\\]+$")  # how the name of one of several files of weights ends
STATE_DICT = "torch.save(network.state_dict(), FILE)"

Format = Literal["safetensors", "torch"]


def check_format(path: Path) -> Format:
    """The format of a file of weights; for another file, CompressError says what it is and what to do."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(b"PK\x03\x04"):
        what = _zip(path)
    elif _is_safetensors(head):
        return "safetensors"
    elif head.startswith(b"\x80"):
        return "torch"
    else:
        what = _other(head, path)
    if what:
        raise CompressError(f"weights {path} {what}")
    return "torch"


def _is_safetensors(head: bytes) -> bool:
    return 2 <= int.from_bytes(head[:8], "little") <= LARGEST_HEADER and head[8:9] == b"{"


def _zip(path: Path) -> str:
    """What to say of a ZIP archive that `torch.save` did not write; empty where it did."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return "is damaged or truncated: copy or download it again"
    ends = {name.partition("/")[2] or name for name in names}
    if "constants.pkl" in ends or any(name.startswith("code/") for name in ends):
        return f"is a TorchScript archive, a program: load it with torch.jit.load and {STATE_DICT}"
    if any(name.startswith("models/") or name.startswith("serialized_exported") for name in ends | set(names)):
        return f"is a program of torch.export: load it with torch.export.load and save its state_dict, {STATE_DICT}"
    if "data.pkl" in ends:
        return ""
    if any(name.endswith(".h5") for name in names):
        return f"is a Keras model: {CONVERT}"
    if any(name.endswith(".npy") for name in names):
        return "is an archive of NumPy arrays: save them as safetensors"
    return "is a ZIP archive, not weights: unpack it and give the file in it"


def _other(head: bytes, path: Path) -> str:
    """What to say of a file that is neither weights nor a ZIP archive."""
    start, suffix = head.lstrip()[:64].lower(), path.suffix.lower()
    if not head:
        return "is empty: copy or download it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights themselves: run `git lfs pull` in its repository"
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page, not weights: the download went wrong; download the file itself"
    for magic, kind in COMPRESSED.items():
        if head.startswith(magic):
            return f"is compressed ({kind}): unpack it and give the file in it"
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it and give the file in it"
    if head.startswith(b"\x89HDF"):
        return f"is an HDF5 file, as Keras and TensorFlow write them: {CONVERT}"
    if head[4:8] == b"TFL3" or suffix in (".pb", ".tflite"):
        return f"is a TensorFlow model: {CONVERT}"
    if suffix == ".onnx" or (head[:1] == b"\x08" and any(w in head.lower() for w in (b"onnx", b"pytorch"))):
        return f"is an ONNX model: {CONVERT}"
    if head.startswith(b"GGUF"):
        return f"is a GGUF file: {CONVERT}"
    if b'"weight_map"' in head or path.name.lower().endswith(".index.json"):
        return f"is the index of weights in several files: {JOIN}"
    if start.startswith((b"{", b"[")):
        return "is JSON text, not weights: give the .safetensors or .pth file that it describes"
    if suffix == ".safetensors":
        return "is not a whole safetensors file: copy or download it again"
    return "is no file of PyTorch weights (.safetensors, .pth, .pt), or is damaged: copy or download it again"
