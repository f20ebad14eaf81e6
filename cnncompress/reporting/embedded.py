"""Pictures of pixels that a page holds in itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from cnncompress.reporting.page import Cell
from cnncompress.text import plain


class Pixels:
    """A picture of `width` times `height` pixels, transparent where nothing was put."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._bytes = bytearray(4 * width * height)

    def put(self, x: int, y: int, colour: Sequence[float]) -> None:
        """Colour a pixel: red, green and blue, cut to [0, 1]; grey where one is no number."""
        start = 4 * (y * self.width + x)
        parts = [round(255 * min(1.0, max(0.0, v))) if v == v else 128 for v in colour]
        self._bytes[start : start + 4] = bytes([*parts, 255])

    def png(self) -> bytes:
        """The picture as a PNG file."""
        from PIL import Image

        file = io.BytesIO()
        Image.frombytes("RGBA", (self.width, self.height), bytes(self._bytes)).save(file, "PNG", optimize=True)
        return file.getvalue()


def picture(file: bytes, told: str, kind: str = "png", pixelated: bool = False) -> Cell:
    """The element of a picture file, which stands in the page itself; `told` is for those who do not see it."""
    from markupsafe import Markup

    words = escape(plain(told), quote=True)
    data = base64.b64encode(file).decode("ascii")
    look = ' class="pixels"' if pixelated else ""
    return Markup(f'<img{look} alt="{words}" src="data:image/{kind};base64,{data}">')
