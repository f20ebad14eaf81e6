"""Structures that are trained, in the place of a pretrained network's 3×3 layers: fitted, corrected and distilled.

    python scripts/bench_structures.py MODEL --weights FILE --data FOLDER --input-size 32 [--macs 0.2 0.4]
    python scripts/bench_structures.py --show

`cc.compress` plans each method within the same share of the MACs and corrects its chains in network order on
`--calibration-images`. Then `--distill attention` trains it with labels and the original's attention maps, on other
images of the training set, once for each of `--epochs` from the same start. A fifth of the evaluation images chooses
the epoch and, for the shortest training, the one of `--rates` (0: found by trials) that the longer ones take over. The
others chose, calibrated and trained nothing: they give top-1, the change that training made and what is missing to the
original, with paired standard errors. Rows go to `results/structures.csv`; a row that is there is not computed again.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from benchlib import Table, markdown, table_parser
from torch import nn

import cnncompress as cc
from cnncompress.chains.modules import FactoredLayer
from cnncompress.data import Augmented
from cnncompress.data.sample import evenly
from cnncompress.network.compressed import Compressed
from cnncompress.network.evaluate import Evaluation, evaluate, paired_error

KEYS = ("network", "method", "macs", "epochs", "trained", "statistics")
COST = ("macs_left", "params", "trains_as")
MEASURED = ("top1", "change", "change_error", "from_original", "original_error", "images")
COLUMNS = (*KEYS, *COST, *MEASURED, "val_start", "val_best", "val_last", "rate", "seconds")
METHODS = ("root", "composite", "acdc", "spatial-svd", "cp")
CHOOSING = 5  # every fifth evaluation image chooses the epoch
BATCH = 64


class Trial:
    """A network with images to calibrate and to train on, to choose by and to judge by."""

    def __init__(self, args: argparse.Namespace) -> None:
        loaded = cc.load_model(args.model, args.weights, input_size=args.input_size)
        self.original = loaded.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        found = cc.load_data(args.data, loaded.preprocessing, None)
        assert found.train is not None
        drawn = evenly(len(found.train), args.images + args.calibration_images)
        step = max(1, len(drawn) // args.calibration_images)
        calibration = set(drawn[::step][: args.calibration_images])
        loader = cc.make_loader(found.train, 100, indices=sorted(calibration))
        self.calibration = torch.cat([x for x, _ in loader])
        training = found.train.subset([i for i in drawn if i not in calibration])
        self.train = Augmented(training, loaded.preprocessing, flip=found.flip, seed=0, augment="standard")
        count = len(found.val)
        self.choosing = found.val.subset(range(0, count, CHOOSING))
        self.others = found.val.subset([i for i in range(count) if i % CHOOSING])
        self.layers = [n for n, m in loaded.model.named_modules() if spatial(m)]
        self.before = self.judged(self.original)
        self.args = args

    def judged(self, network: nn.Module) -> Evaluation:
        """The accuracy on the images that chose nothing."""
        return evaluate(network, cc.make_loader(self.others, 100))

    def compressed(self, method: str, macs: float) -> Compressed:
        """The network with its 3×3 layers replaced, corrected in network order."""
        budget = cc.Budget(macs=macs)
        return cc.compress(
            self.original, self.calibration, budget, method=method, layers=self.layers, allow_slower=True
        )

    def cost(self, network: nn.Module) -> dict[str, float | int]:
        """The columns of what a network costs."""
        whole, left = (cc.profile(model, self.calibration[:1]) for model in (self.original, network))
        return {"macs_left": left.macs / whole.macs, "params": left.params, "trains_as": trained_entries(network)}

    def measured(self, network: nn.Module, start: Evaluation) -> dict[str, float]:
        """The columns of a network that training made of another."""
        after = self.judged(network)
        return {
            "top1": after.top1, "change": after.top1 - start.top1, "change_error": paired_error(start, after) or 0.0,
            "from_original": after.top1 - self.before.top1, "images": after.images,
            "original_error": paired_error(self.before, after) or 0.0,
        }  # fmt: skip

    def distilled(self, start: nn.Module, epochs: int, rate: float) -> tuple[nn.Module, cc.FinetuneResult]:
        """A trained copy of a network."""
        network = copy.deepcopy(start)
        settings = cc.FinetuneSettings(
            distill="attention",
            epochs=epochs,
            lr=rate or None,
            batch_size=BATCH,
            precision=self.args.precision,
            freeze_bn=self.args.statistics == "kept",
        )
        return network, cc.finetune(network, self.train, self.choosing, settings, device="cpu", original=self.original)


def spatial(module: nn.Module) -> bool:
    """True for a 3×3 convolution that does not see the image itself."""
    return isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.in_channels > 3


def trained_entries(network: nn.Module) -> int:
    """The parameters of a network, its chains in the form that they train in."""
    chains = [m for m in network.modules() if isinstance(m, FactoredLayer)]
    stored = sum(p.numel() for p in network.parameters())
    return stored + sum(stage.trained_params - stage.params for chain in chains for stage in chain.chain)


def add(table: Table, trial: Trial, key: dict[str, object], epochs: list[int], rates: list[float]) -> None:
    """The rows of one method at one share of the MACs, those that are missing."""
    if all(table.find(**key, epochs=n) for n in (0, *epochs)):
        return
    began = time.perf_counter()
    small = trial.compressed(str(key["method"]), float(str(key["macs"])))
    start, cost = trial.judged(small.network), trial.cost(small.network)
    nothing = {"val_start": "", "val_best": "", "val_last": "", "rate": ""}
    if not table.find(**key, epochs=0):
        seconds = time.perf_counter() - began
        table.add(**key, epochs=0, **cost, **trial.measured(small.network, start), **nothing, seconds=seconds)
    for n in sorted(epochs):
        known = table.find(**key, epochs=n)
        if known is None:
            began = time.perf_counter()
            tried = [trial.distilled(small.network, n, rate) for rate in rates]
            network, found = max(tried, key=lambda pair: (pair[1].best.top1, pair[1].last.top1))
            table.add(
                **key, epochs=n, **cost, **trial.measured(network, start), val_start=found.start.top1,
                val_best=found.best.top1, val_last=found.last.top1, rate=found.lr or 0.0,
                seconds=time.perf_counter() - began,
            )  # fmt: skip
            print(*(f"  {result.lr:g}: last {result.last.top1:.1f}" for _, result in tried), flush=True)
        rates = [found.lr or 0.0 if known is None else float(known["rate"])]


def show(table: Table) -> None:
    """The rows as a Markdown table, the trainings of a network side by side."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in table.rows:
        groups.setdefault((row["network"], row["macs"], row["method"], row["statistics"]), []).append(row)
    epochs = sorted({int(row["epochs"]) for row in table.rows})
    lines = []
    for (network, _, method, statistics), rows in sorted(groups.items()):
        by = {int(row["epochs"]): row for row in rows}
        first = rows[0]
        params = f"{int(first['params']):,}" + (
            f" (trains as {int(first['trains_as']):,})" if first["trains_as"] != first["params"] else ""
        )
        cells = [network, f"`{method}`", f"{float(first['macs_left']):.3f}", params, statistics]
        for n in epochs:
            row = by.get(n)
            cells.append(f"{float(row['from_original']):+.2f} ± {float(row['original_error']):.2f}" if row else "")
        lines.append(cells)
    heads = [("fitted and corrected" if n == 0 else f"{n} epoch{'s' * (n > 1)}") for n in epochs]
    print(markdown(lines, ["network", "method", "MACs left", "params", "statistics", *heads]))


def main() -> None:
    options = table_parser(__doc__)
    options.add_argument("model", nargs="?")
    options.add_argument("--weights", default="DEFAULT")
    options.add_argument("--data")
    options.add_argument("--input-size", type=int)
    options.add_argument("--methods", nargs="+", default=METHODS)
    options.add_argument("--macs", type=float, nargs="+", default=[0.2, 0.4])
    options.add_argument("--epochs", type=int, nargs="+", default=[1, 5])
    options.add_argument("--rates", type=float, nargs="+", default=[0.01, 0.001])
    options.add_argument("--statistics", choices=["kept", "live"], default="live", help="of batch normalisation")
    options.add_argument("--images", type=int, default=4000, help="to train on")
    options.add_argument("--calibration-images", type=int, default=500)
    options.add_argument("--precision", default="bf16")
    args = options.parse_args()
    torch.set_num_threads(1)
    table = Table(args.results / "structures.csv", KEYS, COLUMNS)
    if not args.show:
        trial = Trial(args)
        name = args.model.rsplit(":", 1)[-1]
        print(f"{name}: {trial.before.top1:.2f} % of {trial.before.images} images", flush=True)
        for macs in args.macs:
            for method in args.methods:
                key = {"network": name, "method": method, "macs": macs, "trained": len(trial.train)}
                key["statistics"] = args.statistics
                add(table, trial, key, args.epochs, args.rates)
    show(table)


if __name__ == "__main__":
    main()
