"""A stored program as a network that runs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnncompress.errors import CompressError
from cnncompress.files.reading import MalformedError
from cnncompress.network.inputs import input_dtype
from cnncompress.programs import archive
from cnncompress.programs.archive import Argument, GraphModule, InputSpec, Node, Number, OptionalTensor, read_archive
from cnncompress.programs.operators import find_operator
from cnncompress.text import first_line, quote

BY_KEYWORD = 2
# The numbers that the format has for torch's types.
DTYPES = dict(enumerate((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64), start=1))
DTYPES |= {6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16}
MEMORY_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}
LAYOUTS = {7: torch.strided}
ENUMERATIONS: dict[str, dict[int, Any]] = {
    "as_scalar_type": DTYPES,
    "as_memory_format": MEMORY_FORMATS,
    "as_layout": LAYOUTS,
}


@dataclass(frozen=True)
class Ref:
    """A value of the graph by name."""

    name: str


HERE = Ref("")  # the device that the network is on


@dataclass(frozen=True)
class Here:
    """What a network runs in now: a device, and in the place of its stored floating-point type `was` the type `now`."""

    device: torch.device
    was: torch.dtype
    now: torch.dtype


class Program(nn.Module):
    """Runs the nodes of a graph one after the other; parameters and buffers have the names that they were saved by.

    There is no module for a layer, so that layers can neither be listed nor replaced.
    """

    def __init__(self, graph: GraphModule, tensors: Mapping[str, archive.Tensor]) -> None:
        super().__init__()
        made: dict[Any, nn.Parameter] = {}
        # all names of its own are taken before those of the file
        self._stored: list[tuple[str, nn.Module, str]] = []
        self._steps: list[Step] = []
        self._done: list[list[str]] = []
        self._input = self._result = ""
        self._type = torch.float32
        given: list[str] = []
        for spec in graph.signature.input_specs:
            if spec.user_input is not None:
                given.append(_tensor_name(spec.user_input.arg))
            else:
                self._stored.append(_put(self, spec, tensors, made))
        outputs = graph.signature.output_specs
        if len(given) != 1 or not outputs:
            raise MalformedError(f"takes {len(given)} inputs and gives {len(outputs)} outputs, unlike a classifier")
        self._input, self._result = given[0], _tensor_name(outputs[0].user_output.arg)
        self._steps += _steps(graph.graph.nodes)
        self._check_names()
        self._type = input_dtype(self)
        self._done += self._last_uses()

    def forward(self, x: Tensor) -> Tensor:
        """The logits of a batch of images."""
        values: dict[str, Any] = {name: getattr(owner, key) for name, owner, key in self._stored}
        values[self._input] = x
        here = Here(x.device, self._type, input_dtype(self))
        for step, done in zip(self._steps, self._done, strict=True):
            step.run(values, here)
            for name in done:
                del values[name]
        result = values[self._result]
        if not isinstance(result, Tensor):
            raise CompressError("the stored program returns no tensor")
        return result

    def _check_names(self) -> None:
        """MalformedError unless every value is made once, and before it is used."""
        known = {name for name, _, _ in self._stored} | {self._input}
        if len(known) != len(self._stored) + 1:
            raise MalformedError("has two inputs of one name")
        for step in self._steps:
            if missing := next((name for name in step.needs if name not in known), None):
                raise MalformedError(f"uses {missing} before it is made")
            if len(known | set(step.makes)) != len(known) + len(step.makes):
                raise MalformedError(f"makes one of {', '.join(step.makes[:3])} twice")
            known |= set(step.makes)
        if self._result not in known:
            raise MalformedError(f"returns {self._result}, which it does not make")

    def _last_uses(self) -> list[list[str]]:
        """For each step the values that no later one needs."""
        last: dict[str, int] = {}
        for i, step in enumerate(self._steps):
            last |= dict.fromkeys((*step.makes, *step.needs), i)
        last.pop(self._result, None)
        uses: list[list[str]] = [[] for _ in self._steps]
        for name, i in last.items():
            uses[i].append(name)
        return uses


class Step:
    """One call of an operator: its arguments and results by their names in the graph."""

    def __init__(self, node: Node, function: Callable[..., Any]) -> None:
        self.function = function
        self.args = [_parse(item.arg) for item in node.inputs if item.kind != BY_KEYWORD]
        self.kwargs = {item.name: _parse(item.arg) for item in node.inputs if item.kind == BY_KEYWORD}
        self.results = [_parse(output) for output in node.outputs]
        self.needs = [ref.name for ref in _refs([*self.args, *self.kwargs.values()])]
        self.makes = [ref.name for ref in _refs(self.results)]

    def run(self, values: dict[str, Any], here: Here) -> None:
        """Call the operator and put what it gives among the values."""
        args = _fill(self.args, values, here)
        output = self.function(*args, **{name: _fill(x, values, here) for name, x in self.kwargs.items()})
        given = [output] if len(self.results) == 1 else list(output) if self.results else []
        for names, result in zip(self.results, given, strict=True):
            several = isinstance(names, list)
            for ref, value in zip(names if several else [names], result if several else [result], strict=True):
                if isinstance(ref, Ref):
                    values[ref.name] = value


def read_program(path: Path) -> Program:
    """The network of a program file, in eval mode on the CPU.

    MalformedError where the file is not understood in full or calls what is no operator of a network; OSError.
    """
    archive = read_archive(path)
    return Program(archive.graph, archive.tensors).eval()


def _steps(nodes: list[Node]) -> Iterator[Step]:
    for node in nodes:
        try:
            function = find_operator(node.target)
        except (KeyError, ValueError):
            raise MalformedError(f"calls {quote(node.target)}, which is no operator of a network") from None
        if function is not None:
            yield Step(node, function)


def _parse(argument: Argument) -> Any:
    """An argument or a result as a plain value, with a Ref for each value of the graph."""
    kind, value = argument.only()
    if kind in ENUMERATIONS:
        if value not in ENUMERATIONS[kind]:
            raise MalformedError(f"has the {kind.removeprefix('as_').replace('_', ' ')} {value}, which is not known")
        return ENUMERATIONS[kind][value]
    if kind == "as_none":
        return None
    if kind == "as_device":
        return HERE
    return [_item(x) for x in value] if isinstance(value, list) else _item(value)


def _item(value: Any) -> Any:
    if isinstance(value, archive.Named):
        return Ref(value.name)
    if isinstance(value, OptionalTensor):
        return Ref(value.as_tensor.name) if value.as_tensor is not None else None
    if isinstance(value, Number):
        if value.as_name is not None:
            return Ref(value.as_name)
        return next((x for x in (value.as_int, value.as_float, value.as_bool) if x is not None), None)
    return value


def _refs(values: Any) -> Iterator[Ref]:
    if isinstance(values, list):
        for value in values:
            yield from _refs(value)
    elif isinstance(values, Ref) and values is not HERE:
        yield values


def _fill(value: Any, values: Mapping[str, Any], here: Here) -> Any:
    """A parsed argument with the values of the graph in it."""
    if isinstance(value, list):
        return [_fill(x, values, here) for x in value]
    if isinstance(value, Ref):
        return here.device if value is HERE else values[value.name]
    return here.now if value is here.was else value


def _tensor_name(argument: Argument) -> str:
    parsed = _parse(argument)
    if not isinstance(parsed, Ref):
        raise MalformedError("takes or gives something other than a tensor")
    return parsed.name


def _put(
    root: nn.Module, spec: InputSpec, tensors: Mapping[str, archive.Tensor], made: dict[Any, nn.Parameter]
) -> tuple[str, nn.Module, str]:
    """Give the network a stored tensor; its name in the graph, the module that has it now, and the name there."""
    stored = spec.parameter or spec.buffer or spec.tensor_constant
    if stored is None:
        raise MalformedError("has an input of a kind that is not known")
    name = stored.parameter_name or stored.buffer_name or stored.tensor_constant_name
    if name is None or name not in tensors:
        raise MalformedError(f"has no tensor for {stored.arg.name}")
    tensor = _tensor(name, tensors[name])
    *path, key = name.split(".")
    owner = root
    try:
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if spec.parameter is not None and tensor.is_floating_point():
            # the same numbers under several names are one parameter
            same = (id(tensors[name].content), tuple(tensor.shape), tensors[name].meta.model_dump_json())
            owner.register_parameter(key, made.setdefault(same, nn.Parameter(tensor)))
        else:
            owner.register_buffer(key, tensor)
    except (KeyError, AttributeError, TypeError) as error:
        raise MalformedError(f"has a tensor called {quote(name)}: {first_line(error)}") from error
    return stored.arg.name, owner, key


def _tensor(name: str, stored: archive.Tensor) -> Tensor:
    """The tensor that bytes of a file stand for; MalformedError where they are too few."""
    meta = stored.meta
    sizes, strides = ([x.as_int for x in values] for values in (meta.sizes, meta.strides))
    offset, dtype = meta.storage_offset.as_int, DTYPES.get(meta.dtype)
    if dtype is None or meta.layout not in LAYOUTS or len(sizes) != len(strides):
        raise MalformedError(f"has a type or layout of {name} that is not known")
    if 0 in sizes:
        return torch.empty(sizes, dtype=dtype)
    last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) + 1
    available = len(stored.content) // dtype.itemsize
    if max(last, math.prod(sizes)) > available:
        raise MalformedError(f"has {available:,} numbers for {name}, which needs more")
    flat = torch.frombuffer(bytearray(stored.content), dtype=torch.uint8)[: available * dtype.itemsize].view(dtype)
    return flat.as_strided(sizes, strides, offset).clone(memory_format=torch.preserve_format)
