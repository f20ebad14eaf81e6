"""Groups of channels that some layers give and others take, one to one: what a network can do with fewer of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from cnncompress.network import operations
from cnncompress.network.graph import Traced
from cnncompress.network.kinds import is_layer, kind_of, spec_of

SUMMED = "they are added to those of another branch"
CONCATENATED = "they are concatenated with those of another branch"
JOINED = "they go into {}, which does not keep channels apart"
RETURNED = "they are what the network returns"
AGAIN = "{} is called more than once"
GROUPED = "{} takes them in groups"
FIXED = "{} cannot change"
UNKNOWN = "torch.fx cannot follow the forward pass"
GIVEN = "no layer gives them one by one"
OF_IMAGE = "they are those of the image"


@dataclass(frozen=True, eq=False)
class Group:
    """`channels` channels that `makers` give, `between` work on one by one, and `takers` read.

    `between` are modules with numbers for each channel: normalisations, PReLUs, depthwise convolutions. `takers` has
    the inputs that each channel is to a layer: several after a flattening.
    """

    channels: int
    makers: tuple[str, ...]
    between: tuple[str, ...]
    takers: Mapping[str, int]

    @property
    def name(self) -> str:
        """The first layer that gives the channels: no two groups have the same."""
        return self.makers[0]

    @property
    def modules(self) -> tuple[str, ...]:
        """All that change with the number of channels."""
        return (*self.makers, *self.between, *self.takers)


@dataclass(frozen=True)
class Channels:
    """The groups of a network, and why the inputs of each other layer stay whole, in words."""

    groups: tuple[Group, ...]
    whole: Mapping[str, str]


def channel_groups(traced: Traced | None, network: nn.Module, fixed: Collection[str] = ()) -> Channels:
    """The groups of a network by its graph; layers of `fixed` neither give nor take fewer channels.

    Only operations that are known to keep channels apart are followed: anything else keeps them whole, and so does an
    addition of branches.
    """
    modules = dict(network.named_modules(remove_duplicate=False))
    if traced is None:
        return Channels((), {name: UNKNOWN for name, module in modules.items() if is_layer(module)})
    return _Reading(traced.graph, modules, fixed).read()


@dataclass(eq=False)
class _Space:
    """Channels that are the same ones wherever they are seen; `whole` says why none of them can go."""

    channels: int
    makers: list[str] = field(default_factory=list)
    between: list[str] = field(default_factory=list)
    takers: dict[str, int] = field(default_factory=dict)
    whole: str = ""
    same: _Space | None = None  # the space that this one turned out to be

    def root(self) -> _Space:
        return self if self.same is None else self.same.root()

    def keep(self, why: str) -> None:
        root = self.root()
        root.whole = root.whole or why

    def join(self, other: _Space) -> None:
        """Both are one from now on."""
        mine, theirs = self.root(), other.root()
        if mine is not theirs:
            mine.makers += theirs.makers
            mine.between += theirs.between
            mine.takers |= theirs.takers
            mine.whole = mine.whole or theirs.whole
            theirs.same = mine


@dataclass(frozen=True)
class _Value:
    """What a node gives: channels of a space, in images or as vectors, in which each may be several numbers."""

    space: _Space
    vectors: bool = False
    flattened: bool = False

    @property
    def form(self) -> tuple[int, bool, bool]:
        return self.space.root().channels, self.vectors, self.flattened


class _Reading:
    """One pass over the nodes of a graph."""

    def __init__(self, graph: fx.Graph, modules: Mapping[str, nn.Module], fixed: Collection[str]) -> None:
        self.graph, self.modules, self.fixed = graph, modules, fixed
        self.values: dict[fx.Node, _Value] = {}
        self.spaces: list[_Space] = []
        self.inputs: dict[str, _Space | str] = {}  # of layers; why there is none
        self.why: dict[fx.Node, str] = {}  # why the channels of a value are not followed
        self.calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]

    def read(self) -> Channels:
        for node in self.graph.nodes:
            value = self._module(node) if node.op == "call_module" else self._operation(node)
            if value is not None:
                self.values[node] = value
            elif node not in self.why:
                self.why[node] = next((self.why[n] for n in node.all_input_nodes if n in self.why), GIVEN)
        groups = [
            Group(s.channels, tuple(s.makers), tuple(s.between), dict(s.takers))
            for s in self.spaces
            if s.same is None and not s.whole and s.makers and s.takers
        ]
        taken = {name for group in groups for name in group.takers}
        rest = {name: space for name, space in self.inputs.items() if name not in taken}
        whole = {name: why if isinstance(why, str) else why.root().whole or GIVEN for name, why in rest.items()}
        return Channels(tuple(groups), whole)

    def _read_values(self, node: fx.Node) -> list[_Value]:
        return [self.values[n] for n in node.all_input_nodes if n in self.values]

    def _keep(self, node: fx.Node, why: str) -> None:
        self.why[node] = why
        for value in self._read_values(node):
            value.space.keep(why)

    # --- modules ---

    def _module(self, node: fx.Node) -> _Value | None:
        name = str(node.target)
        module, values = self.modules[name], self._read_values(node)
        value = values[0] if len(values) == 1 and len(node.all_input_nodes) == 1 else None
        if is_layer(module):
            return self._layer(name, module, value, node)
        if value is None:
            if values:
                self._keep(node, JOINED.format(name))
            return None
        if operations.is_flattening(module):
            return _Value(value.space, True, not value.vectors or value.flattened)
        numbers = 0 if operations.is_channelwise(module) else operations.numbers_a_channel(module)
        if numbers == value.space.root().channels:
            value.space.root().between.append(name)
            self._check(name, value.space)
        elif numbers != 0:
            value.space.keep(JOINED.format(name))
        return value

    def _layer(self, name: str, module: nn.Module, value: _Value | None, node: fx.Node) -> _Value | None:
        spec = spec_of(module)
        if spec.depthwise:
            return self._depthwise(name, module, value, node)
        if value is not None:
            self.inputs[name] = value.space
            self._take(name, module, value)
        else:
            before = [self.why[n] for n in node.all_input_nodes if n in self.why]
            self.inputs[name] = next(iter(before), JOINED.format(name))
            self._keep(node, JOINED.format(name))
        made = _Space(spec.out_channels, [name])
        self.spaces.append(made)
        self._check(name, made)
        if spec.groups > 1:
            made.keep(GROUPED.format(name))
        return _Value(made, spec.linear)

    def _take(self, name: str, module: nn.Module, value: _Value) -> None:
        spec, space = spec_of(module), value.space.root()
        each, rest = divmod(spec.in_channels, space.channels)
        if rest or spec.linear != value.vectors or (each > 1 and not value.flattened):
            space.keep(JOINED.format(name))
        elif spec.groups > 1:
            space.keep(GROUPED.format(name))
        space.takers[name] = each
        self._check(name, space)

    def _depthwise(self, name: str, module: nn.Module, value: _Value | None, node: fx.Node) -> _Value | None:
        spec = spec_of(module)
        if value is None or value.vectors or spec.out_channels != spec.in_channels:
            self._keep(node, GROUPED.format(name))
            return None
        value.space.root().between.append(name)
        self._check(name, value.space)
        return value

    def _check(self, name: str, space: _Space) -> None:
        """Keep a space whole where a module that it goes through cannot change."""
        module = self.modules[name]
        if name in self.fixed or (is_layer(module) and not kind_of(module).narrows):
            space.keep(FIXED.format(name))
        if self.calls.count(name) > 1:
            space.keep(AGAIN.format(name))

    # --- operations ---

    def _operation(self, node: fx.Node) -> _Value | None:
        values, what = self._read_values(node), operations.kind_of_operation(node)
        if node.op == "placeholder":
            self.why[node] = OF_IMAGE
        if not values or what == "shape":
            return None
        if what == "elementwise" and len(node.all_input_nodes) == 1:
            return values[0]
        if what == "spatial" and len(node.all_input_nodes) == 1 and not values[0].vectors:
            return values[0]
        if what in ("flatten", "mean") and len(values) == 1 and not values[0].vectors:
            return _Value(values[0].space, True, what == "flatten")
        if what == "product" and len(values) == len(node.all_input_nodes) and len({v.form for v in values}) == 1:
            for other in values[1:]:
                values[0].space.join(other.space)
            return values[0]
        known = {"sum": SUMMED, "concatenation": CONCATENATED}
        self._keep(node, RETURNED if node.op == "output" else known.get(what, JOINED.format(_named(node))))
        return None


def _named(node: fx.Node) -> str:
    """The operation of a node in a word."""
    return str(getattr(node.target, "__name__", node.target))
