"""What a price on the sensitivity of `cp` fits gives: how compressed networks bear noise, rounding and training.

    python scripts/bench_sensitivity.py MODEL --weights FILE --data FOLDER [--input-size 32] --budget 0.5
    python scripts/bench_sensitivity.py --show

The original and its networks at one share of the MACs, fitted without a price, with others and with that of the
package, have noise added to their kernels, have them rounded, and are trained: `STEPS` steps of SGD with momentum on
the calibration images and their labels. Divergences are those of the answers from the same network's before, top-1 is
that of held-out images. Rows go to `results/sensitivity_NAME.csv`; `--show` prints the table of all such files.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from benchlib import RESULTS, Bench, Table, markdown, open_bench, parser, read_csv
from torch import Tensor, nn
from torch.nn import functional as F

import cnncompress as cc
from cnncompress.chains.modules import FactoredLayer
from cnncompress.decompositions import sensitivity
from cnncompress.decompositions.sensitivity import component_factors
from cnncompress.network.run import forward

RATES = (0.0001, 0.001, 0.002, 0.005)
STEPS, BATCH, MOMENTUM = 23, 128, 0.9
NOISE = 0.01  # standard deviation, as a share of the root mean square of a kernel
ROUNDED = {"bf16": "all", "int8": "all", "int8 depthwise": "depthwise"}
MEASURED = ("top1", "divergence", "components", "largest", "sensitivity", "gradient", "noise", *ROUNDED)
COLUMNS = ("network", "budget", "price", "images", *MEASURED, *(f"rate {rate:g}" for rate in RATES))


def chains(model: nn.Module) -> Iterator[FactoredLayer]:
    """Those of `cp`."""
    for module in model.modules():
        if isinstance(module, FactoredLayer) and [k.shape[1] == 1 for k in module.kernels()] == [False, True, False]:
            yield module


def components(model: nn.Module) -> dict[str, float]:
    """Of the worst layer: the root of the components' summed squares and the largest, to the kernel's norm; S / S₀."""
    ratios, largest, relative = [0.0], [0.0], [0.0]
    for chain in chains(model):
        squares = [f.square().sum(0) for f in component_factors([k.detach() for k in chain.kernels()])]
        norms, kernel = (squares[0] * squares[1] * squares[2]).sqrt(), float(chain.to_dense().norm())
        ratios.append(float(norms.norm()) / kernel)
        largest.append(float(norms.max()) / kernel)
        least = 3 * len(norms) ** (1 / 3) * kernel ** (4 / 3)
        relative.append(sensitivity.sensitivity(squares) / least)
    return {"components": max(ratios), "largest": max(largest), "sensitivity": max(relative)}


@torch.no_grad()
def changed(model: nn.Module, change: Callable[[Tensor], Tensor], which: str = "all") -> nn.Module:
    """A copy with other kernels of convolutions: of all, or of those in chains that are depthwise."""
    model = copy.deepcopy(model)
    inner = {id(m) for chain in chains(model) for m in chain.modules() if getattr(m, "groups", 1) > 1}
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and (which == "all" or id(module) in inner):
            module.weight.copy_(change(module.weight))
    return model


def noisy(seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda w: w + NOISE * w.square().mean().sqrt() * torch.randn(w.shape, generator=generator)


def rounded(name: str) -> Callable[[Tensor], Tensor]:
    """To bfloat16, or to 255 levels of each filter."""
    if name == "bf16":
        return lambda w: w.bfloat16().float()

    def int8(weight: Tensor) -> Tensor:
        step = weight.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-30) / 127
        return (weight / step).round() * step

    return int8


def trained(bench: Bench, model: nn.Module, rate: float) -> tuple[nn.Module, float]:
    """A copy after `STEPS` steps, and the norm of the first one's gradient."""
    images, labels = (torch.cat(parts) for parts in zip(*bench.calibration, strict=True))
    generator = torch.Generator().manual_seed(0)
    model = copy.deepcopy(model).train()
    optimizer, first = torch.optim.SGD(model.parameters(), lr=rate, momentum=MOMENTUM), 0.0
    for _ in range(STEPS):
        chosen = torch.randperm(len(images), generator=generator)[:BATCH]
        optimizer.zero_grad()
        F.cross_entropy(forward(model, images[chosen]), labels[chosen]).backward()
        squares = [float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None]
        first = first or sum(squares) ** 0.5
        optimizer.step()
    return model.eval(), first


def compressed(bench: Bench, images: Tensor, share: float, cache: Path) -> nn.Module:
    """The network at a share of the MACs, from the cache where it is there."""
    path = cache / f"{bench.name}-macs-{share:g}-price-{sensitivity.PRICE:g}"
    if not path.exists():
        cc.save(cc.compress(bench.model, images, cc.Budget(macs=share), allow_slower=True), path)
    return cc.load(path, trust_code=True)


def measure(bench: Bench, model: nn.Module) -> dict[str, float]:
    """All columns of a network."""
    before = bench.answers(model)

    def moved(other: nn.Module) -> float:
        return float((before.exp() * (before - bench.answers(other))).sum(1).mean())

    found = {**bench.measure(model), **components(model)}
    found["noise"] = sum(moved(changed(model, noisy(seed))) for seed in range(3)) / 3
    found |= {name: moved(changed(model, rounded(name), which)) for name, which in ROUNDED.items()}
    for rate in RATES:
        after, found["gradient"] = trained(bench, model, rate)
        found[f"rate {rate:g}"] = bench.top1(after)
    return found


def show() -> None:
    for path in sorted(RESULTS.glob("sensitivity_*.csv")):
        rows = [[row["network"], *(row[c] for c in COLUMNS[1:])] for row in read_csv(path)]
        print(markdown(rows, COLUMNS), end="\n\n")


def main() -> None:
    if "--show" in sys.argv:
        return show()
    options = parser(__doc__)
    options.add_argument("--budget", type=float, default=0.5)
    options.add_argument("--prices", type=float, nargs="+", default=[0.0, sensitivity.PRICE])
    args = options.parse_args()
    bench = open_bench(args)
    table = Table(args.results / f"sensitivity_{bench.name}.csv", COLUMNS[:3], COLUMNS)
    images = torch.cat([x for x, _ in bench.calibration])
    for price in (None, *args.prices):
        key = {"network": bench.name, "budget": args.budget if price is not None else 1.0, "price": price or 0.0}
        if table.find(**key):
            continue
        sensitivity.PRICE = price or 0.0
        small = bench.model if price is None else compressed(bench, images, args.budget, args.cache)
        table.add(**key, images=bench.images, **measure(bench, small))


if __name__ == "__main__":
    main()
