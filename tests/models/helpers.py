"""What the tests of loading share."""

from __future__ import annotations

import pytest


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message
