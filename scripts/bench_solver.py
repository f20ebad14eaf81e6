"""Time and quality of the budget solver on a network with 4 methods × 24 ranks for every layer.

    python scripts/bench_solver.py [resnet152] [--limits macs,params] [--repeats 5]

Two sets of candidates: the methods that apply (a 1×1 convolution takes one, a 3×3 convolution four), and four for every
layer, where the missing ones have the ranks of the first with MACs and parameters drawn from 0.8 to 1.25 times its own.
Costs are those of the chains. Errors are drawn: each method of a layer sees singular values i^-a with a from 0.3 to
1.2, its error at rank K is the share of energy beyond K, times a factor of the layer that is log-uniform from 1e-4 to
1e-1 and one of the method from 0.8 to 1.3; keeping the layer costs nothing. Writes `results/solver.csv`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import benchlib
import numpy as np
import torch
import torchvision

from cnncompress.chains.spec import Call, chain_params
from cnncompress.decompositions import get_method
from cnncompress.network.trace import trace
from cnncompress.planning.solver.knapsack import solve

METHODS = ("spatial-svd", "channel-svd", "svd", "tucker2", "cp")
STEPS = 24
COUNT = 4  # methods of every layer in the second set
KEYS = ("methods", "limits", "budget")
COLUMNS = (*KEYS, "candidates", "seconds", "first_error", "gap", "bound", "proven")

Curve = tuple[np.ndarray, np.ndarray]  # costs [candidates, (macs, params)], errors [candidates]


def main() -> None:
    options = benchlib.bare_parser(__doc__)
    options.add_argument("model", nargs="?", default="resnet152", help="a torchvision classifier")
    options.add_argument("--limits", action="append", help="macs, params or macs,params [default: the first and last]")
    options.add_argument("--budgets", type=float, nargs="+", default=[0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    with torch.device("meta"):
        calls = trace(torchvision.models.get_model(args.model, weights=None), torch.zeros(1, 3, 224, 224))
    path = args.results / "solver.csv"
    path.unlink(missing_ok=True)
    table = benchlib.Table(path, KEYS, COLUMNS)
    for name, count in (("that apply", 0), (f"{COUNT} for each", COUNT)):
        rng = np.random.default_rng(args.seed)
        layers = [candidates(call, count, rng) for call in calls.values()]
        for limits in args.limits or ["macs", "macs,params"]:
            for budget in args.budgets:
                table.add(methods=name, limits=limits, budget=budget, **measure(layers, limits, budget, args.repeats))
    print(f"\n{args.model}: {len(calls)} layers, {STEPS} ranks a method, median of {args.repeats} runs\n")
    print(benchlib.markdown([[row[c] for c in COLUMNS] for row in table.rows], COLUMNS))


def candidates(call: Call, count: int, rng: np.random.Generator) -> Curve:
    """Keep the layer, or one of its methods (at least `count`) at one of the ranks of a geometric grid."""
    dense = np.array([[call.macs, call.spec.params]], dtype=float)
    importance = 10 ** rng.uniform(-4, -1)
    costs = list(chains(call))
    costs += [costs[0] * rng.uniform(0.8, 1.25, 2) for _ in range(count - len(costs))]
    errors = [importance * rng.uniform(0.8, 1.3) * tail(call, rng.uniform(0.3, 1.2)) for _ in costs]
    return np.concatenate([dense, *costs]), np.concatenate([[0.0], *errors])


def chains(call: Call) -> Iterator[np.ndarray]:
    """Costs [ranks, (macs, params)] of each method that applies to a layer."""
    for name in METHODS:
        method = get_method(name)
        if method.refuse(call.spec) is None:
            full = method.full_rank(call.spec)
            ranks = [tuple(max(1, round(f**share)) for f in full) for share in shares()]
            stages = [method.stages(call.spec, rank) for rank in ranks]
            yield np.array([[call.macs_of(chain), chain_params(chain)] for chain in stages], dtype=float)


def shares() -> np.ndarray:
    """The exponents of the full rank that give the grid."""
    return np.arange(1, STEPS + 1) / STEPS


def tail(call: Call, exponent: float) -> np.ndarray:
    """The share of energy beyond each rank of the grid, for singular values i^-exponent."""
    width = min(call.spec.in_channels, call.spec.out_channels)
    energy = np.arange(1, width + 1) ** (-2 * exponent)
    ranks = np.maximum(1, np.round(width ** shares())).astype(int)
    return np.array([energy[rank:].sum() for rank in ranks]) / energy.sum()


def measure(layers: list[Curve], limits: str, budget: float, repeats: int) -> dict[str, object]:
    """Solve for a share of the network's own costs: seconds, and how far the Lagrangian start is from the optimum."""
    columns = [("macs", "params").index(name) for name in limits.split(",")]
    costs, errors = [c[:, columns] for c, _ in layers], [e for _, e in layers]
    most = [budget * float(total) for total in sum(c[0] for c in costs)]
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        found = solve(costs, errors, most)
        seconds.append(time.perf_counter() - begin)
    first = solve(costs, errors, most, time_limit=0.0)
    if found is None or first is None:
        raise SystemExit(f"no selection of {limits} {budget}")
    return {
        "candidates": sum(map(len, errors)),
        "seconds": statistics.median(seconds),
        "first_error": first.error,
        "gap": f"{first.error / found.error - 1:.1e}",
        "bound": f"{1 - first.bound / found.error:.1e}",
        "proven": found.proven,
    }


if __name__ == "__main__":
    main()
