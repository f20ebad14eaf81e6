"""What fine-tuning gives back: schedules, with and without the original's answers, beside the original trained as long.

    python scripts/bench_schedules.py RUN... --data FOLDER [--schedules all upper cascade:group=6] [--distill none]
    python scripts/bench_schedules.py --show

Training images are drawn evenly from those of the set and augmented as `--augment` says. A fifth of the evaluation
images chooses the epoch; its top-1 is that of the start and of the last epoch, whose weights are kept only where they
are better. The others chose nothing: they give top-1 of what is kept, with the paired standard error of the change from
its start and from the original. `rate` 0 is a learning rate found by trials. The schedule `original` trains the
network that was never compressed. Rows go to `results/schedules.csv`; a row that is there is not computed again.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import tempfile
import time
from pathlib import Path

import torch
from benchlib import Table, markdown, table_parser
from torch import nn

import cnncompress as cc
from cnncompress.data import Augmented
from cnncompress.data.sample import evenly
from cnncompress.network.evaluate import Evaluation, evaluate, paired_error
from cnncompress.pipeline.asked import NetworkAsked
from cnncompress.pipeline.opened import open_run
from cnncompress.pipeline.original import original_network
from cnncompress.pipeline.rows import recorded

HOW = ("augment", "precision", "optimizer", "statistics")
KEYS = ("network", "schedule", "distill", "augment", "rate", "epochs", "trained", *HOW[1:])
MEASURED = ("top1", "loss", "change", "change_error", "from_original", "original_error", "images")
CHOICE = ("val_start", "val_last")
COLUMNS = (*KEYS, *MEASURED, *CHOICE, "chosen_rate", "seconds")
CHOOSING = 5  # every fifth evaluation image chooses the epoch
BATCH = 64


class Trial:
    """A run's network and its original, with images to train on, to choose by and to judge by."""

    def __init__(self, run: Path, args: argparse.Namespace) -> None:
        opened = open_run(run, NetworkAsked(trust_code=True))
        original = original_network(opened)
        assert original is not None
        layout = {"memory_format": torch.channels_last}  # faster to train here
        self.small, self.original = (network.to(**layout) for network in (opened.model, original))
        rows = recorded(opened).rows
        self.names = {"run": rows[-1].name, "original": rows[0].name}
        found = cc.load_data(args.data, opened.preprocessing, None)
        assert found.train is not None
        chosen = found.train.subset(evenly(len(found.train), args.images))
        self.train = Augmented(chosen, opened.preprocessing, flip=found.flip, seed=0, augment=args.augment)
        self.args = args
        count = len(found.val)
        self.val = found.val.subset(range(0, count, CHOOSING))
        self.others = found.val.subset([i for i in range(count) if i % CHOOSING])
        self.before = {name: self.judged(network) for name, network in (("run", self.small), ("original", original))}

    def judged(self, network: nn.Module) -> Evaluation:
        """The accuracy on the images that chose nothing."""
        return evaluate(network, cc.make_loader(self.others, 100))

    def add(self, table: Table, schedule: str, distill: str, rate: float, epochs: int) -> None:
        """Train in one way, and add its row."""
        plain = schedule == "original"
        start = "original" if plain else "run"
        how = {name: getattr(self.args, name) for name in HOW}
        key = {
            **{"network": self.names[start], "schedule": schedule, "distill": distill, "rate": rate, "epochs": epochs},
            **{"trained": len(self.train), **how},
        }
        if table.find(**key) or (plain and distill != "none"):  # it has nothing to learn from itself
            return
        network = copy.deepcopy(self.original if plain else self.small)
        settings = cc.FinetuneSettings(
            schedule="all" if plain else schedule, distill=distill, lr=rate or None, epochs=epochs, batch_size=BATCH,
            calibration_images=500, precision=self.args.precision, optimizer=self.args.optimizer,
            freeze_bn=self.args.statistics == "kept",
        )  # fmt: skip
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder, "checkpoints")
            found = cc.finetune(network, self.train, self.val, settings, place, original=self.original, device="cpu")
        after, seconds = self.judged(network), time.perf_counter() - began
        before, original = self.before[start], self.before["original"]
        table.add(
            **key, top1=after.top1, loss=after.loss, change=after.top1 - before.top1,
            change_error=paired_error(before, after) or 0.0, from_original=after.top1 - original.top1,
            original_error=paired_error(original, after) or 0.0, images=after.images, val_start=found.start.top1,
            val_last=found.last.top1, chosen_rate=found.lr or 0.0,
            seconds=seconds,
        )  # fmt: skip
        for step in found.steps:
            tops = [value.top1 for value in (step.before, step.decomposed, step.tuned)]
            print(f"  {', '.join(step.layers)}: " + " → ".join(f"{top1:.1f}" for top1 in tops))
        print(f"  {found.start.top1:.2f} → {found.best.top1:.2f}, last {found.last.top1:.2f}; {found.note}", flush=True)


def show(table: Table) -> None:
    """The rows as a Markdown table."""
    heads = ["network", "schedule", "distill", *HOW, "trained", "epochs"]
    lines = [
        [
            *(r[c] for c in heads),
            *("by trials" if float(r["rate"]) == 0 else r["rate"], f"{float(r['val_start']):.1f} → {r['val_last']}"),
            *(f"{float(r['top1']):.2f}", f"{float(r['change']):+.2f} ± {float(r['change_error']):.2f}"),
        ]
        for r in table.rows
    ]
    heads += ["rate", "choosing images %", "others %", "points from the start"]
    print(markdown(lines, heads))


def main() -> None:
    options = table_parser(__doc__)
    options.add_argument("runs", type=Path, nargs="*")
    options.add_argument("--data")
    options.add_argument("--images", type=int, default=3000)
    options.add_argument("--schedules", nargs="+", default=["original", "all", "upper", "cascade:group=6"])
    options.add_argument("--distill", nargs="+", default=["none", "logits"])
    options.add_argument("--augment", default="standard")
    options.add_argument("--precision", default="fp32")
    options.add_argument("--optimizer", default="sgd")
    options.add_argument("--statistics", choices=["kept", "live"], default="kept", help="of batch normalisation")
    options.add_argument("--rates", type=float, nargs="+", default=[0.0])
    options.add_argument("--epochs", type=int, nargs="+", default=[1])
    args = options.parse_args()
    torch.set_num_threads(1)
    table = Table(args.results / "schedules.csv", KEYS, COLUMNS)
    for run in [] if args.show else args.runs:
        trial = Trial(run, args)
        for which, before in trial.before.items():
            print(f"{trial.names[which]}: {before.top1:.2f} % of {before.images} images", flush=True)
        for way in itertools.product(args.schedules, args.distill, args.rates, args.epochs):
            trial.add(table, *way)
    show(table)


if __name__ == "__main__":
    main()
