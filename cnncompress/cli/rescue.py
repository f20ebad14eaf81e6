"""The last resort: what no other part has explained still ends in one line, and leaves a file with its traceback."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import traceback
from importlib import metadata

from cnncompress import __version__
from cnncompress.errors import is_out_of_memory, place
from cnncompress.text import first_line

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scipy", "pillow", "safetensors", "onnx", "onnxruntime")
OUT_OF_MEMORY = "out of memory{where}; try a smaller --batch-size or --input-size, or fewer --calibration-images"


def last_words(error: BaseException) -> str:
    """One line for an error that nothing has explained: what, where, and the file that its traceback is now in."""
    where = "".join(f" ({what})" for what in [", ".join(place(error))] if what)
    if is_out_of_memory(error):
        return OUT_OF_MEMORY.format(where=where)
    kind = type(error).__name__
    what = kind if str(error).strip() == "" else f"{kind}: {first_line(error)}"
    return f"this should not have happened: {what}{where}; {_keep(error)}"


def _keep(error: BaseException) -> str:
    """Write the traceback to a file; where it is, or why there is none, in words."""
    try:
        handle, path = tempfile.mkstemp(prefix="cnncompress-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write("\n".join([*_circumstances(), "", *traceback.format_exception(error)]))
    except OSError as failure:
        return f"its traceback could not be written ({failure.strerror or failure})"
    return f"please report it with the traceback in {path}"


def _circumstances() -> list[str]:
    """The command and the versions, one a line."""
    lines = [f"command: {' '.join(sys.argv)}", f"cnncompress {__version__}", f"python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return [*lines, f"system {platform.platform()}"]
