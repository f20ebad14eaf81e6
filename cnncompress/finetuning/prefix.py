"""The frozen part of a network, up to a module on whose output alone all that trains depends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnncompress.network.partial import first_call
from cnncompress.network.run import forward, inference

MOST_TRIED = 32  # modules that may be such an end, from the last one on


@dataclass
class Call:
    """One call of a module, from event `start` to event `end`, and its output."""

    module: nn.Module
    start: int
    end: int = -1
    output: Any = None


class Prefix:
    """The part of a network up to the output of `end`, which is called once.

    `skipped` are calls before it: what they give matters to nothing that comes after `end`.
    """

    def __init__(self, network: nn.Module, end: nn.Module, skipped: Sequence[Call] = ()) -> None:
        self.network, self.end = network, end
        self.skipped = [(c.module, c.output.shape[1:], c.output.dtype) for c in skipped]
        self._output: Any = None  # what is given for that of `end`
        self._reached = False
        # The same functions in every pass, so that what was compiled for them goes on.
        self._instead = {module: self._blank(module.forward, *like) for module, *like in self.skipped}
        self._instead[end] = self._at_the_end

    def output(self, images: Tensor) -> Tensor:
        """What `end` gives for images [n, c, H, W]; the network runs no further."""
        output: Tensor = first_call(self.network, self.end, images).output
        return output

    @contextmanager
    def given(self, output: Tensor) -> Iterator[None]:
        """Within the block, a forward pass takes `output` [n, ...] for that of `end`, and does not compute it."""
        self._output, self._reached = output, False
        own = {module: vars(module)["forward"] for module in self._instead if "forward" in vars(module)}
        try:
            for module, function in self._instead.items():
                module.forward = function  # type: ignore[method-assign]
            yield
        finally:
            self._output = None
            for module in self._instead:
                del module.forward
                if module in own:
                    module.forward = own[module]

    def _at_the_end(self, *args: Any, **kwargs: Any) -> Tensor:
        self._reached = True
        output: Tensor = self._output
        return output

    def _blank(self, usual: Callable[..., Any], shape: Sequence[int], dtype: torch.dtype) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._reached:
                return usual(*args, **kwargs)
            return self._output.new_zeros((len(self._output), *shape), dtype=dtype)

        return run

    def holds(self, images: Tensor) -> bool:
        """Whether nothing but the output of `end` comes through: the network answers blank images as it does these."""
        with inference(self.network):
            expected, output = forward(self.network, images), self.output(images).clone()
            try:
                with self.given(output):
                    found = forward(self.network, torch.zeros_like(images))
            except Exception:  # somebody else's code meets what it did not expect
                return False
        return torch.equal(found, expected)


def find_prefix(network: nn.Module, names: Iterable[str], example: Tensor) -> Prefix | None:
    """The longest part of a network before the first of the modules `names` that `Prefix` can stand for, or None.

    `example` [1, c, H, W] shows the order of execution. Images of random numbers show what depends on what.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((2, *example.shape[1:]), generator=generator).to(example)
    calls, chosen = _calls(network, images), {network.get_submodule(name) for name in names}
    times = Counter(call.module for call in calls)
    first = min((call.start for call in calls if call.module in chosen), default=-1)
    done = [call for call in calls if 0 <= call.end < first and times[call.module] == 1 and _is_batch(call.output)]
    for end in sorted(done, key=lambda call: -call.end)[:MOST_TRIED]:
        prefix = Prefix(network, end.module, _outermost([call for call in done if call.end < end.start]))
        if prefix.holds(images):
            return prefix
    return None


def _is_batch(output: Any) -> bool:
    return isinstance(output, Tensor) and output.dim() > 0 and len(output) == 2


def _outermost(calls: Iterable[Call]) -> list[Call]:
    """Those of some calls that happen within no other one of them."""
    found: list[Call] = []
    for call in sorted(calls, key=lambda call: call.start):
        if not found or call.start > found[-1].end:
            found.append(call)
    return found


def _calls(network: nn.Module, images: Tensor) -> list[Call]:
    """The calls of modules in a forward pass, in the order in which they begin."""
    calls: list[Call] = []
    running: list[Call] = []
    events = 0

    def begins(module: nn.Module, args: Any) -> None:
        nonlocal events
        calls.append(Call(module, events))
        running.append(calls[-1])
        events += 1

    def ends(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal events
        call = running.pop()
        call.end, call.output = events, output
        events += 1

    watched = [module for module in network.modules() if not isinstance(module, torch.jit.ScriptModule)]
    handles = [module.register_forward_pre_hook(begins) for module in watched]
    handles += [module.register_forward_hook(ends) for module in watched]
    try:
        with inference(network):
            forward(network, images)
    finally:
        for handle in handles:
            handle.remove()
    return calls
