"""The content of a file of `torch.export`, as plain values.

torch's own loader is not used: it unpickles members of the file and evaluates expressions in it, so that opening a
file of somebody else could run anything. Here the graph is read by schema, tensors as raw bytes, and the rest is left.
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from cnncompress.files.reading import MalformedError, check, check_regular, parse_json
from cnncompress.text import first_line

MAJOR = 8  # version of the format; all of torch 2.11 and newer write it
GRAPH = "models/model.json"
TENSORS = {"data/weights/": "model_weights_config.json", "data/constants/": "model_constants_config.json"}
JSON_BYTES = 64 * 2**20

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,500}$")]
Dotted = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+){0,60}$", max_length=1000)]
Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Part(BaseModel):
    """A part of the format of which only some keys count."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Whole(BaseModel):
    """A part of which every key counts, and no other may be there."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Named(Part):
    """A tensor by its name in the graph."""

    name: Identifier


class Number(Whole):
    """A size or another number, known or computed by a node."""

    as_name: Identifier | None = None
    as_int: Integer | None = None
    as_float: float | None = None
    as_bool: bool | None = None


class OptionalTensor(Whole):
    """A tensor, or none."""

    as_tensor: Named | None = None
    as_none: bool | None = None


class Device(Part):
    """A device, which is always taken to be that of the network."""

    type: str


class Argument(Whole):
    """One argument or result of a node, of one of these kinds."""

    as_none: bool | None = None
    as_tensor: Named | None = None
    as_tensors: list[Named] | None = None
    as_optional_tensor: OptionalTensor | None = None
    as_optional_tensors: list[OptionalTensor] | None = None
    as_int: Integer | None = None
    as_ints: list[Integer] | None = None
    as_float: float | None = None
    as_floats: list[float] | None = None
    as_bool: bool | None = None
    as_bools: list[bool] | None = None
    as_string: Annotated[str, Field(max_length=100)] | None = None
    as_sym_int: Number | None = None
    as_sym_ints: list[Number] | None = None
    as_sym_float: Number | None = None
    as_sym_floats: list[Number] | None = None
    as_sym_bool: Number | None = None
    as_sym_bools: list[Number] | None = None
    as_scalar_type: int | None = None
    as_memory_format: int | None = None
    as_layout: int | None = None
    as_device: Device | None = None

    def only(self) -> tuple[str, Any]:
        """Its kind and its value; MalformedError unless there is exactly one."""
        given = [(kind, value) for kind in self.model_fields_set if (value := getattr(self, kind)) is not None]
        if len(given) != 1:
            raise MalformedError("has an argument of no or of several kinds")
        return given[0]


class Input(Part):
    """One argument of a node by name; `kind` 2 passes it by keyword."""

    name: Identifier
    arg: Argument
    kind: int | None = None


class Node(Part):
    """One call of an operator."""

    target: Annotated[str, Field(max_length=200)]
    inputs: list[Input]
    outputs: list[Argument]


class Stored(Whole):
    """A graph input that is a tensor of the file, under one of these names."""

    arg: Named
    parameter_name: Dotted | None = None
    buffer_name: Dotted | None = None
    persistent: bool | None = None
    tensor_constant_name: Dotted | None = None


class Given(Whole):
    """A graph input that the caller gives, or an output that it gets."""

    arg: Argument


class InputSpec(Whole):
    """The description of one graph input."""

    parameter: Stored | None = None
    buffer: Stored | None = None
    tensor_constant: Stored | None = None
    user_input: Given | None = None


class OutputSpec(Whole):
    """The description of one graph output."""

    user_output: Given


class Signature(Part):
    """The descriptions of the inputs and outputs of a graph."""

    input_specs: list[InputSpec]
    output_specs: list[OutputSpec]


class Graph(Part):
    """The nodes in the order of their calls."""

    nodes: list[Node]


class GraphModule(Part):
    """A graph and its signature."""

    graph: Graph
    signature: Signature


class Version(Part):
    """The version of the format."""

    major: int


class Model(Part):
    """models/model.json."""

    schema_version: Version
    graph_module: GraphModule


class Size(Whole):
    """One extent of a stored tensor."""

    as_int: Annotated[int, Field(ge=0, lt=2**48)]


class Meta(Part):
    """Shape and type of a stored tensor."""

    dtype: int
    sizes: Annotated[list[Size], Field(max_length=16)]
    strides: Annotated[list[Size], Field(max_length=16)]
    storage_offset: Size
    layout: int


class Payload(Part):
    """The place of a stored tensor's bytes."""

    path_name: Annotated[str, Field(pattern="^(weight|tensor)_[0-9]{1,9}$")]
    use_pickle: bool
    tensor_meta: Meta


class Payloads(Part):
    """A list of stored tensors by name."""

    config: dict[Dotted, Payload]


@dataclass(frozen=True)
class Tensor:
    """A stored tensor: its bytes and what they mean."""

    content: bytes
    meta: Meta


@dataclass(frozen=True)
class Archive:
    """A program: its graph, and its tensors by name."""

    graph: GraphModule
    tensors: dict[str, Tensor]


P = TypeVar("P", bound=BaseModel)


def read_archive(path: Path) -> Archive:
    """The program in a file; MalformedError where it is not one that is understood in full, OSError."""
    check_regular(path)
    try:
        with zipfile.ZipFile(path) as file:
            members = _members(file, path.stat().st_size)
            model = _json(Model, members[GRAPH], file)
            if model.schema_version.major != MAJOR:
                raise MalformedError(f"has the format {model.schema_version.major} of torch.export, not {MAJOR}")
            contents: dict[str, bytes] = {}
            tensors: dict[str, Tensor] = {}
            for folder, config in TENSORS.items():
                if folder + config in members:
                    payloads = _json(Payloads, members[folder + config], file)
                    tensors |= _tensors(file, members, folder, payloads, contents)
    except (MalformedError, OSError):
        raise
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OverflowError, RuntimeError, struct.error) as error:
        raise MalformedError(f"is no whole file of torch.export ({first_line(error)})") from error
    return Archive(model.graph_module, tensors)


def _members(file: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The members by their path in the archive's folder: stored as they are, no larger than the file, none twice."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in file.infolist():
        name = member.filename.partition("/")[2]
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise MalformedError("has compressed members, as torch.export writes none")
        if name in members:
            raise MalformedError("has two members of one name")
        members[name] = member
    if sum(member.file_size for member in members.values()) > size:
        raise MalformedError("has members that are larger than the file")
    return members


def _json(schema: type[P], member: zipfile.ZipInfo, file: zipfile.ZipFile) -> P:
    if member.file_size > JSON_BYTES:
        raise MalformedError(f"holds more than {JSON_BYTES:,} bytes of JSON")
    try:
        values = parse_json(file.read(member).decode())
    except UnicodeDecodeError:
        raise MalformedError("holds JSON that is not UTF-8") from None
    check(schema, values)
    return TypeAdapter(schema).validate_python(values)


def _tensors(
    file: zipfile.ZipFile,
    members: dict[str, zipfile.ZipInfo],
    folder: str,
    payloads: Payloads,
    contents: dict[str, bytes],
) -> dict[str, Tensor]:
    tensors = {}
    for name, payload in payloads.config.items():
        if payload.use_pickle:
            raise MalformedError(f"holds a pickle for {name}, which is not opened")
        path = folder + payload.path_name
        if path not in contents:
            contents[path] = file.read(members[path])
        tensors[name] = Tensor(contents[path], payload.tensor_meta)
    return tensors
