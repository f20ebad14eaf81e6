"""Numbers and plans in words, for tables and for `repr`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cnncompress.chains.plan import LayerPlan, Plan

LISTED = 12  # layers of a plan in its repr


def human(value: int, unit: str = "") -> str:
    """A number with four digits: 138.4M."""
    exponent = 0 if value < 1000 else min(4, int(math.log10(float(f"{value:.3e}"))) // 3)
    digits = f"{value / 1000**exponent:.4g}" if exponent == 0 else f"{value / 1000**exponent:#.4g}"
    return digits.rstrip(".") + ("", "K", "M", "G", "T")[exponent] + unit


def counted(number: int, noun: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def layer_plan_in_words(plan: LayerPlan) -> str:
    """One line: the layer, the method with its rank, and params and MACs before and after."""
    rank = "×".join(map(str, plan.rank))
    costs = (f"{what} {human(a)} → {human(b)}" for what, (a, b) in (("params", plan.params), ("MACs", plan.macs)))
    return f"<{plan.spec}: {plan.method} {rank}, {', '.join(costs)}>"


def plan_in_words(plan: Plan) -> str:
    """A line on the whole plan, and one each for its first layers."""
    shares = "".join(f", {share:.3g} of the {cost}" for cost, share in plan.achieved.items())
    lines = [f"<Plan: {len(plan.layers)} layers replaced, {len(plan.kept)} kept, metric {plan.metric}{shares}"]
    names = list(plan.layers)
    width = max(map(len, names[:LISTED]), default=0)
    for name in names[:LISTED]:
        layer = plan.layers[name]
        lines.append(f"  {name:{width}}  {layer.spec}: {layer.method} {'×'.join(map(str, layer.rank))}")
    if len(names) > LISTED:
        lines.append(f"  … {len(names) - LISTED} more in .layers")
    return "\n".join(lines) + ">"
