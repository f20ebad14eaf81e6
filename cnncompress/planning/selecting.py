"""Which channels a network can do with fewer of, and how many are left: by rank."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cnncompress.chains.plan import Plan
from cnncompress.errors import UsageError
from cnncompress.metrics import get_metric
from cnncompress.names.methods import SELECT
from cnncompress.network.channels import GIVEN, Channels, Group
from cnncompress.network.selection import MOST_INPUTS
from cnncompress.network.subject import Subject
from cnncompress.network.widths import channels_of, narrowed_to
from cnncompress.planning.rules import Choice, Kept, RankRequest

WHOLE = "its input channels stay whole: {}"
CIRCLE = "layers that share channels close a circle, in which one group has to stay"


def select_by_rank(subject: Subject, choices: Mapping[str, Choice], biased: bool) -> Plan:
    """The plan that leaves the channels asked for of every group, with the reasons of the layers that stay.

    `choices` are of the method select alone. A group changes where all its layers may; its rank is that of the layer
    that takes it. `biased` gives what takes fewer channels a bias.
    """
    if not choices:
        return Plan()
    channels = channels_of(subject)
    counts: dict[Group, int] = {}
    kept = {name: WHOLE.format(channels.whole[name]) for name in choices if name in channels.whole}
    for group in channels.groups:
        count = channels_left(group, choices, subject)
        if isinstance(count, Kept):
            kept |= {name: count.reason for name in group.modules if name in choices}
        else:
            counts[group] = count
    plan = narrowed_to(subject.calls, counts, biased)
    for name in choices:
        if name not in plan.narrowed:
            plan.kept[name] = kept.get(name, WHOLE.format(GIVEN))
    return plan


def selecting(choices: Mapping[str, Choice], subject: Subject, metric: str) -> set[str]:
    """The layers whose channels a budget may leave out: those of select, and of auto in networks of depthwise layers.

    The 1×1 convolutions around depthwise ones are near full rank, so that chains save little there. Without images auto
    leaves all channels, and so does every method where the metric has no closed form for it.
    """
    needs = get_metric(metric).needs
    if "sensitivity" in needs:
        return set()
    compact = "moment" in needs and any(call.spec.depthwise for call in subject.calls.values())
    methods = {SELECT, "auto"} if compact else {SELECT}
    return {name for name, choice in choices.items() if methods & set(choice.methods)}


def channels_left(group: Group, choices: Mapping[str, Choice], subject: Subject) -> int | Kept:
    """The channels of a group that are left, or why all of them are."""
    reason = unfit(group, choices, subject)
    if reason is not None:
        return Kept(reason)
    counts = {_rank(group.channels, choices[name].rank) for name in group.takers}
    if len(counts) > 1:
        return Kept(f"{', '.join(group.takers)} take the same channels, and different ranks are asked for")
    count = counts.pop()
    return count if count < group.channels else Kept(f"rank {count} is all of its {group.channels} channels")


def unfit(group: Group, choices: Collection[str], subject: Subject) -> str | None:
    """Why the channels of a group stay, or None."""
    for name in group.modules:
        if name in subject.calls and name not in choices:
            return f"{name} has the same channels and stays as it is"
    for name in group.takers:
        spec = subject.calls[name].spec
        inputs = spec.weights // spec.out_channels
        if inputs > MOST_INPUTS:
            return f"{name} takes {inputs} inputs at a position, too many to choose from (at most {MOST_INPUTS})"
    return None


def staying(channels: Channels, names: Collection[str], subject: Subject) -> dict[str, str]:
    """Why the input channels of layers among `names` stay whole, in words, where these alone may change."""
    why = dict(channels.whole)
    for group in channels.groups:
        reason = "there is only one" if group.channels < 2 else unfit(group, names, subject)
        if reason is not None:
            why |= dict.fromkeys(group.takers, reason)
    return {name: reason for name, reason in why.items() if name in names}


def _rank(channels: int, request: RankRequest) -> int:
    if isinstance(request, float):
        if not 0 < request <= 1:
            raise UsageError(f"rank fraction {request} is not in (0, 1]; give e.g. --rank 0.75, or a whole number")
        return max(1, int(request * channels + 0.5))
    if not isinstance(request, int):
        if len(request) != 1:
            raise UsageError(f"{SELECT} takes one rank, the channels that are left, not {len(request)}")
        request = request[0]
    if request < 1:
        raise UsageError(f"rank {request} is not positive; the smallest rank is 1")
    return min(request, channels)
