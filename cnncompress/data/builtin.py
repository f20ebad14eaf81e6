"""The data sets that need no files: drawings of what ships inside scikit-learn."""

from __future__ import annotations

from cnncompress.data.digits import DIGITS
from cnncompress.data.drawn import Drawn
from cnncompress.data.loading import Images
from cnncompress.data.photodigits import PHOTODIGITS
from cnncompress.data.sources import Data, fingerprint
from cnncompress.errors import UsageError
from cnncompress.network.preprocessing import Preprocessing

BUILTIN: dict[str, Drawn] = {"digits": DIGITS, "photodigits": PHOTODIGITS}
TEST = "test"


def built_in(name: str, part: str, preprocessing: Preprocessing) -> Data:
    """A built-in set with its fixed training, validation and test parts.

    With `part` "test" it is the test part alone, as images to evaluate on; UsageError for another word.
    """
    if part not in ("", TEST):
        raise UsageError(f"{name} has no part '{part}': give {name}, or {name}:{TEST} for its test images alone")
    drawn = BUILTIN[name]
    labels = drawn.labels()
    names = [f"image {i}" for i in range(len(labels))]
    parts = {
        key: Images(drawn.draw, names, labels, preprocessing, positions)
        for key, positions in drawn.parts().items()
        if key == TEST or not part
    }
    mark = fingerprint((f"{key}/{i}", 0, labels[i]) for key, images in parts.items() for i in images.positions)
    if part:
        return Data(f"{name}:{part}", parts[TEST], None, max(labels) + 1, mark, flip=False)
    return Data(name, parts["val"], parts["train"], max(labels) + 1, mark, parts[TEST], flip=False)
