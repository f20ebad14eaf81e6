"""Reading JSON and YAML that somebody else may have written: limits first, then a schema. Nothing here needs torch."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from cnncompress.errors import UsageError
from cnncompress.files.regular import kind_of, open_regular
from cnncompress.text import first_line, plain, quote

JSON_BYTES = 16 * 2**20
YAML_BYTES = 256 * 2**10  # the parser takes seconds for more
MOST_LEVELS = 32
MOST_VALUES = 500_000
LONGEST_VALUE = 10_000  # characters of a single value in YAML


class MalformedError(ValueError):
    """Content that breaks a limit, a syntax or a schema; the message goes on from the file's name, in one line."""


class Schema(BaseModel):
    """The base of JSON schemas: these keys and no others, of exactly these types, numbers finite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def read_json(path: str | Path, schema: Any = None) -> dict[str, Any]:
    """The object in a JSON file, after `schema` where one is given.

    OSError where the system refuses, MalformedError for anything that is not such an object.
    """
    values = parse_json(read_text(path, JSON_BYTES))
    if not isinstance(values, dict):
        raise MalformedError("holds no JSON object")
    if schema is not None:
        check(schema, values)
    return values


def read_given(path: Path, schema: Any, what: str, like: str) -> dict[str, Any]:
    """As `read_json`, for a file that the user names: UsageError where it is not a `what`, as `like` tells."""
    try:
        return read_json(path, schema)
    except OSError as error:
        raise UsageError(f"cannot read the {what} {path}: {error.strerror}") from None
    except MalformedError as error:
        raise UsageError(f"{path} is not a {what}, as {like}: it {error}") from None


def read_text(path: str | Path, limit: int) -> str:
    """The text of a regular file of at most `limit` bytes of UTF-8; OSError or MalformedError otherwise."""
    check_regular(path)
    with open_regular(path, follow=True) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise MalformedError(f"is larger than {limit:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedError(f"is not UTF-8 text (byte {error.start:,})") from None


def check_regular(path: str | Path) -> None:
    """MalformedError for a pipe or a device; OSError for a folder, and where there is nothing."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if kind := kind_of(path, follow=True):
        raise MalformedError(f"is {kind}, not a regular file")


def parse_json(text: str) -> Any:
    """JSON without duplicate keys, NaN, Infinity, huge numbers and deep nesting; MalformedError otherwise."""
    try:
        values = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_integer,
        )
    except MalformedError:
        raise
    except ValueError as error:
        raise MalformedError(f"is not JSON ({first_line(error)})") from None
    except RecursionError:
        raise MalformedError(f"is nested deeper than {MOST_LEVELS} levels") from None
    for count, (value, depth) in enumerate(_walk(values)):
        if count > MOST_VALUES:
            raise MalformedError(f"holds more than {MOST_VALUES:,} values")
        if depth > MOST_LEVELS:
            raise MalformedError(f"is nested deeper than {MOST_LEVELS} levels")
        if isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise MalformedError(f"holds half a character in {quote(value)}")
    return values


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise MalformedError(f"has the key {quote(twice)} twice")
    return values


def _constant(name: str) -> NoReturn:
    raise MalformedError(f"holds {name}, which is no JSON number")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise MalformedError(f"holds the number {quote(digits)}, which is too large")
    return value


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise MalformedError(f"holds the number {quote(digits)}, which is too large")
    return int(digits)


def _walk(values: Any) -> Iterator[tuple[Any, int]]:
    """Every value and key with its depth."""
    left = [(values, 1)]
    while left:
        value, depth = left.pop()
        yield value, depth
        if isinstance(value, dict):
            left += [(child, depth + 1) for pair in value.items() for child in pair]
        elif isinstance(value, list):
            left += [(child, depth + 1) for child in value]


def finite(value: Any) -> Any:
    """`value` with null for the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def checksum(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal; OSError or MalformedError as `read_text`."""
    check_regular(path)
    with open_regular(path, follow=True) as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def check(schema: Any, values: Any) -> None:
    """MalformedError that names the first wrong key where `values` do not follow `schema`, a `Schema` or a type."""
    try:
        TypeAdapter(schema).validate_python(values, strict=True)
    except ValidationError as error:
        raise MalformedError(_explain(error.errors(include_url=False)[0])) from None


def _explain(first: Any) -> str:
    key = plain(".".join(str(part) for part in first["loc"]))[:200]
    at = f" at {key}" if key else ""
    if first["type"] == "extra_forbidden":
        return f"has an unknown key {key}"
    if first["type"] == "missing":
        return f"lacks {key}"
    if first["type"] == "value_error" and isinstance(first["ctx"]["error"], ValidationError):  # one schema in another
        inner = first["ctx"]["error"].errors(include_url=False)[0]
        return _explain({**inner, "loc": (*first["loc"], *inner["loc"])})
    if first["type"] == "value_error":
        return f"is wrong{at}: {plain(str(first['ctx']['error']))}"
    message = plain(str(first["msg"]))[:200]
    return f"is wrong{at}: {quote(first['input'])}: {message[:1].lower()}{message[1:]}"


class _Loader(yaml.SafeLoader):
    """Plain values, and 1e-4 a number as in YAML 1.2: PyYAML takes it for a text.

    It ends at the first level too many, however deep Python lets functions call themselves: every level that is open
    makes the next token slower.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As in PyYAML; MalformedError where it is nested too deep."""
        self.levels = getattr(self, "levels", 0) + 1
        if self.levels > MOST_LEVELS:
            raise MalformedError(f"is nested deeper than {MOST_LEVELS} levels")
        node: yaml.Node | None = super().compose_node(parent, index)
        self.levels -= 1
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: str | Path) -> Any:
    """The value in a YAML file, aliases expanded; OSError or MalformedError.

    Only plain values are made. Duplicate keys, references of a value to itself, and more than a tenth of
    `MOST_VALUES` after the expansion of aliases are refused.
    """
    text = read_text(path, YAML_BYTES)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node)
        return loader.construct_document(node)
    except MalformedError:
        raise
    except RecursionError:
        raise MalformedError(f"is nested deeper than {MOST_LEVELS} levels") from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise MalformedError(f"is not YAML: {plain(' '.join(str(error).split()))[:400]}") from None


def word(text: str) -> Any:
    """A value that was typed as YAML reads it: a number, true, false, null, a list, or else the text itself."""
    try:
        value = yaml.load(text, _Loader) if len(text) < LONGEST_VALUE else text
    except (yaml.YAMLError, RecursionError, ValueError):
        return text
    return text if isinstance(value, date) else value


def _check_nodes(root: yaml.Node) -> None:
    """Limits on a YAML document before values are made of it."""
    left, count = [(root, 1)], 0
    while left:
        node, depth = left.pop()
        count += 1
        if depth > MOST_LEVELS:
            raise MalformedError(f"is nested deeper than {MOST_LEVELS} levels, or refers to itself")
        if count > MOST_VALUES // 10:
            raise MalformedError(f"holds more than {MOST_VALUES // 10:,} values once its aliases are expanded")
        if isinstance(node, yaml.ScalarNode):
            if len(node.value) > LONGEST_VALUE:
                raise MalformedError(f"holds a value of more than {LONGEST_VALUE:,} characters")
        elif isinstance(node, yaml.MappingNode):
            _check_keys(node)
            left += [(child, depth + 1) for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            left += [(child, depth + 1) for child in node.value]


def _check_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise MalformedError(f"has a key in line {line} that is not a word")
        if key.value in seen:
            raise MalformedError(f"has the key {quote(key.value)} twice (line {line})")
        seen.add(key.value)
