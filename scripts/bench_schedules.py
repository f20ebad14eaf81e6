"""What fine-tuning gives back: schedules, with and without the original's answers, beside the original trained as long.

    python scripts/bench_schedules.py RUN... --data FOLDER [--ways original/none all/logits cascade:group=6/none]
    python scripts/bench_schedules.py --show

A way is a schedule and what it learns from; all runs are trained in the first way before the second. The schedule
`original` trains the network that was never compressed. Training images are drawn evenly from those of the set,
`--per-epoch` of them anew for each epoch. `--augment standard` is done here, on decoded images: a shift of up to an
eighth and a flip. A fifth of the evaluation images chooses the epoch; its top-1 is that of the start and of the last
epoch, whose weights are kept only where they are better. The others chose nothing: they give top-1 of what is kept,
with the paired standard error of the change from its start, from the original, and from the original trained in the
same way. `reads` is their top-1 after some epochs of one training, whose rate goes on along its one cosine. `rate` 0
is a learning rate found by trials. Rows go to `results/schedules.csv`; a row that is there is not computed again.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from benchlib import Table, markdown, table_parser
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import cnncompress as cc
from cnncompress.data import Augmented
from cnncompress.data.loading import Images
from cnncompress.data.sample import evenly
from cnncompress.finetuning import trainer
from cnncompress.network.evaluate import Evaluation, evaluate, paired_error
from cnncompress.pipeline.asked import NetworkAsked
from cnncompress.pipeline.opened import open_run
from cnncompress.pipeline.original import original_network
from cnncompress.pipeline.rows import recorded

HOW = ("augment", "precision", "optimizer", "statistics")
KEYS = ("network", "schedule", "distill", "augment", "rate", "epochs", "trained", "per_epoch", *HOW[1:])
CHANGES = ("change", "change_error", "from_original", "original_error", "from_baseline", "baseline_error")
COLUMNS = (*KEYS, "top1", "loss", *CHANGES, "images", "val_start", "val_last", "chosen_rate", "seconds", "reads")
CHOOSING = 5  # every fifth evaluation image chooses the epoch
BATCH = 64
READ_AT = (1, 3, 10)


class Shifted(Dataset[Any]):
    """Images as `Augmented` changes them by `standard`, decoded once and changed without PIL: a third faster."""

    fixed = False

    def __init__(self, images: Images, flip: bool) -> None:
        self.images, self.flip, self.epoch = images, flip, 0
        self.padded = cache(self._padded)

    @property
    def plain(self) -> Images:
        """The same images as they are evaluated."""
        return self.images

    def set_epoch(self, epoch: int) -> None:
        """Choose the random numbers of an epoch."""
        self.epoch = epoch

    def _padded(self, index: int) -> Tensor:
        image = self.images[index][0]
        height, width = (n // 8 for n in image.shape[1:])
        return F.pad(image[None], (width, width, height, height), mode="replicate")[0]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        padded, numbers = self.padded(index), np.random.default_rng((self.epoch, index))
        height, width = (n * 4 // 5 for n in padded.shape[1:])
        top, left, flipped = numbers.integers((height // 4 + 1, width // 4 + 1, 2))
        shown = padded[:, top : top + height, left : left + width]
        return (shown.flip(2) if self.flip and flipped else shown), self.images.label(index)


@cache
def training_images(data: str, preprocessing: Any, count: int, augment: str) -> Dataset[Any]:
    """So many training images of a folder, the same for all runs, so that they are decoded once."""
    found = cc.load_data(data, preprocessing, None)
    assert found.train is not None
    chosen = found.train.subset(evenly(len(found.train), count))
    if augment == "standard":
        return Shifted(chosen, found.flip)
    return Augmented(chosen, preprocessing, flip=found.flip, seed=0, augment=augment)


class Trial:
    """A run's network and its original, with images to train on, to choose by and to judge by."""

    def __init__(self, run: Path, args: argparse.Namespace) -> None:
        opened = open_run(run, NetworkAsked(trust_code=True))
        original = original_network(opened)
        assert original is not None
        layout = {"memory_format": torch.channels_last}  # faster to train here
        self.small, self.original = (network.to(**layout) for network in (opened.model, original))
        rows = recorded(opened).rows
        self.names, self.args = {"run": rows[-1].name, "original": rows[0].name}, args
        self.train: Any = training_images(args.data, opened.preprocessing, args.images, args.augment)
        val = cc.load_data(args.data, opened.preprocessing, None).val
        self.val = val.subset(range(0, len(val), CHOOSING))
        self.others = val.subset([i for i in range(len(val)) if i % CHOOSING])
        self.before = {name: self.judged(network) for name, network in (("run", self.small), ("original", original))}
        for which, before in self.before.items():
            print(f"{self.names[which]}: {before.top1:.2f} % of {before.images} images", flush=True)

    def judged(self, network: nn.Module) -> Evaluation:
        """The accuracy on the images that chose nothing."""
        return evaluate(network, cc.make_loader(self.others, 100), progress=False)

    def add(self, table: Table, way: str, rate: float, epochs: int) -> None:
        """Train in one way, and add its row."""
        schedule, distill = way.split("/")
        plain = schedule == "original"
        start = "original" if plain else "run"
        how = {name: getattr(self.args, name) for name in HOW}
        each = min(self.args.per_epoch or len(self.train), len(self.train))
        key = {
            **{"network": self.names[start], "schedule": schedule, "distill": distill, "rate": rate, "epochs": epochs},
            **{"trained": len(self.train), "per_epoch": each, **how},
        }
        if table.find(**key):
            return
        network = copy.deepcopy(self.original if plain else self.small)
        settings = cc.FinetuneSettings(
            schedule="all" if plain else schedule, distill=distill, lr=rate or None, epochs=epochs, batch_size=BATCH,
            calibration_images=500, precision=self.args.precision, optimizer=self.args.optimizer,
            freeze_bn=self.args.statistics == "kept", images_per_epoch=each,
        )  # fmt: skip
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, self.reading(settings) as reads:
            place = Path(folder, "checkpoints")
            found = cc.finetune(network, self.train, self.val, settings, place, original=self.original, device="cpu")
        after, seconds = self.judged(network), time.perf_counter() - began
        hits = self.args.hits / f"{self.args.precision}-{epochs}-{each}.pt"
        if plain:
            hits.parent.mkdir(parents=True, exist_ok=True)
            torch.save(after.hits, hits)
        table.add(
            **key, top1=after.top1, loss=after.loss, **self.changes(after, start, hits), images=after.images,
            val_start=found.start.top1, val_last=found.last.top1, chosen_rate=found.lr or 0.0, seconds=seconds,
            reads=" ".join(f"{epoch}:{top1:.2f}" for epoch, top1 in reads.items()),
        )  # fmt: skip
        for step in found.steps:
            tops = [value.top1 for value in (step.before, step.decomposed, step.tuned)]
            print(f"  {', '.join(step.layers)}: " + " → ".join(f"{top1:.1f}" for top1 in tops))
        print(f"  {found.start.top1:.2f} → {found.best.top1:.2f}, last {found.last.top1:.2f}; {found.note}", flush=True)

    def changes(self, after: Evaluation, start: str, baseline: Path) -> dict[str, float | str]:
        """The differences in top-1 from the start, the original and the trained original, with standard errors."""
        others = {"change": self.before[start], "original": self.before["original"]}
        if baseline.exists():
            hits = torch.load(baseline)
            others["baseline"] = Evaluation(100 * float(hits.double().mean()), 0, 0, len(hits), hits)
        found: dict[str, float | str] = dict.fromkeys(CHANGES, "")
        for name, other in others.items():
            found["change" if name == "change" else f"from_{name}"] = after.top1 - other.top1
            found[f"{name}_error"] = paired_error(other, after) or 0.0
        return found

    @contextmanager
    def reading(self, settings: cc.FinetuneSettings) -> Iterator[dict[int, float]]:
        """Within the block top-1 on the images that chose nothing is read after some epochs of a training."""
        reads: dict[int, float] = {}
        usual, counted = trainer.validated, itertools.count()

        def validated(network: nn.Module, *args: Any) -> Evaluation:
            epoch = next(counted)
            if epoch in READ_AT and not settings.schedule.startswith("cascade"):
                reads[epoch] = self.judged(network).top1
            return usual(network, *args)

        with mock.patch.object(trainer, "validated", validated):
            yield reads


def show(table: Table) -> None:
    """The rows as a Markdown table."""
    heads = ["network", "schedule", "distill", *HOW, "trained", "per_epoch", "epochs"]
    lines = []
    for r in table.rows:
        rate = "by trials" if float(r["rate"]) == 0 else r["rate"]
        change = f"{float(r['change']):+.2f} ± {float(r['change_error']):.2f}"
        apart = f"{float(r['from_baseline']):+.2f} ± {float(r['baseline_error']):.2f}" if r["from_baseline"] else ""
        choosing = f"{float(r['val_start']):.1f} → {r['val_last']}"
        lines.append([*(r[c] for c in heads), rate, choosing, f"{float(r['top1']):.2f}", change, apart, r["reads"]])
    heads += ["rate", "choosing images %", "others %", "points from the start", "from the baseline", "reads"]
    print(markdown(lines, heads))


def main() -> None:
    options = table_parser(__doc__)
    options.add_argument("runs", type=Path, nargs="*")
    options.add_argument("--data")
    options.add_argument("--images", type=int, default=3000)
    options.add_argument("--per-epoch", type=int, help="images that an epoch draws [default: all]")
    options.add_argument("--ways", nargs="+", default=["original/none", "all/logits", "all/none"])
    options.add_argument("--augment", default="standard")
    options.add_argument("--precision", default="fp32")
    options.add_argument("--optimizer", default="sgd")
    options.add_argument("--statistics", choices=["kept", "live"], default="kept", help="of batch normalisation")
    options.add_argument("--rates", type=float, nargs="+", default=[0.0])
    options.add_argument("--epochs", type=int, nargs="+", default=[1])
    options.add_argument("--hits", type=Path, default=Path("build/bench/hits"), help="folder for the baseline's")
    args = options.parse_args()
    torch.set_num_threads(1)
    table = Table(args.results / "schedules.csv", KEYS, COLUMNS)
    trials = [] if args.show else [Trial(run, args) for run in args.runs]
    for way, rate, epochs, trial in itertools.product(args.ways, args.rates, args.epochs, trials):
        trial.add(table, way, rate, epochs)
    show(table)


if __name__ == "__main__":
    main()
