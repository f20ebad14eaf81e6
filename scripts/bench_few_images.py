"""What a network learns from its original's answers to a few hundred images without labels.

    python scripts/bench_few_images.py MODEL --weights FILE --data FOLDER [--mean 0.5 --std 0.5] [--folds 1]
    python scripts/bench_few_images.py --show

Of five folds of the evaluation images one is judged by. Of the others a fifth ends the training early, by how far its
answers are from the original's; the rest calibrates and trains: `cc.compress` to the share of the MACs, then `--distill
logits --unlabelled`. Rows have top-1 and the Kullback-Leibler divergence from the original's answers, in nats an image,
before and after training, on the images of the fold, with the paired standard errors of the changes; the divergences on
the images that end the training, epoch by epoch; and those on training images. Rows go to `results/few_images.csv`; a
row that is there is not computed again. `--show` takes the folds that are there together.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path

import torch
from benchlib import Table, markdown, table_parser
from torch import Tensor, nn

import cnncompress as cc
from cnncompress.data import Augmented, Images
from cnncompress.network.compressed import Compressed
from cnncompress.network.divergence import Answers
from cnncompress.network.evaluate import evaluate

KEYS = ("network", "macs", "augment", "epochs", "fold")
VALUES = ("before", "after", "change", "change_error")
COLUMNS = (
    *KEYS, *(f"top1_{v}" for v in ("original", *VALUES)), *(f"divergence_{v}" for v in VALUES),
    "training_before", "training_after", "best_epoch", "held_back", "rate", "trained", "images", "seconds",
)  # fmt: skip
FOLDS, CALIBRATION, BATCH = 5, 100, 16


def read(images: Images) -> Tensor:
    """The images of a set, [n, c, h, w]."""
    return torch.cat([x for x, _ in cc.make_loader(images, 20)])


def paired(before: Tensor, after: Tensor) -> dict[str, float]:
    """The means of two values of the same images [n], their difference and its standard error."""
    change = after - before
    error = float(change.std() / len(change) ** 0.5)
    return dict(zip(VALUES, (float(before.mean()), float(after.mean()), float(change.mean()), error), strict=True))


class Fold:
    """A network with images to learn from, to end by and to judge by."""

    def __init__(self, model: nn.Module, every: Images, number: int, augment: str) -> None:
        self.model, self.number = model, number
        count = range(len(every))
        rest = [i for i in count if i % FOLDS != number]
        self.judging = every.subset([i for i in count if i % FOLDS == number])
        self.ending = every.subset(rest[::5])
        self.learning = every.subset([i for place, i in enumerate(rest) if place % 5])
        self.train = Augmented(self.learning, every.preprocessing, flip=True, seed=0, augment=augment)
        self.judged = Answers(model, read(self.judging))
        self.known = Answers(model, read(self.learning.subset(range(0, len(self.learning), 4))))

    def compressed(self, macs: float) -> Compressed:
        """The network at a share of its MACs, planned and corrected on some of the images to learn from."""
        images = read(self.learning.subset(range(0, len(self.learning), max(1, len(self.learning) // CALIBRATION))))
        return cc.compress(self.model, images[:CALIBRATION], cc.Budget(macs=macs), allow_slower=True)

    def measured(self, network: nn.Module) -> tuple[Tensor, Tensor, float]:
        """Of each image to judge by, whether it is right (in percent) and the divergence; the mean one in training."""
        hits = evaluate(network, cc.make_loader(self.judging, 20)).hits
        assert hits is not None
        divergences = self.judged.divergences(network).double()
        return 100 * hits.double(), divergences, float(self.known.divergences(network).mean())


def add(table: Table, fold: Fold, key: dict[str, object], small: Compressed, epochs: int) -> None:
    """Train a network, and add its row."""
    began = time.perf_counter()
    before = fold.measured(small.network)
    settings = cc.FinetuneSettings(distill="logits", unlabelled=True, epochs=epochs, batch_size=BATCH, precision="bf16")
    result = cc.finetune(small, fold.train, fold.ending, settings, device="cpu", teacher=copy.deepcopy(fold.model))
    after = fold.measured(small.network)
    top1, divergence = paired(before[0], after[0]), paired(before[1], after[1])
    original = evaluate(fold.model, cc.make_loader(fold.judging, 20)).top1
    table.add(
        **key, top1_original=original, **{f"top1_{k}": v for k, v in top1.items()},
        **{f"divergence_{k}": v for k, v in divergence.items()}, training_before=before[2], training_after=after[2],
        best_epoch=result.best_epoch, held_back=" ".join(f"{row['val_loss']:.4f}" for row in result.history),
        rate=result.lr or 0.0, trained=len(fold.learning), images=len(fold.judging),
        seconds=time.perf_counter() - began,
    )  # fmt: skip
    print(f"  {result.note}", flush=True)


def show(table: Table) -> None:
    """The rows as a Markdown table, the folds of a training together."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in table.rows:
        groups.setdefault(tuple(row[k] for k in KEYS[:-1]), []).append(row)
    lines = []
    for key, rows in groups.items():
        cells = [*key, str(sum(int(row["images"]) for row in rows)), f"{mean(rows, 'top1_original'):.1f}"]
        for what, digits in (("top1", 1), ("divergence", 3)):
            error = sum(float(row[f"{what}_change_error"]) ** 2 for row in rows) ** 0.5 / len(rows)
            change = f"{mean(rows, f'{what}_change'):+.{digits}f} ± {error:.{digits}f}"
            cells += [f"{mean(rows, f'{what}_before'):.{digits}f}", change]
        lines.append(cells)
    heads = ["original %", "before %", "change", "divergence before", "change"]
    print(markdown(lines, [*KEYS[:-1], "images", *heads]))


def mean(rows: list[dict[str, str]], column: str) -> float:
    return sum(float(row[column]) for row in rows) / len(rows)


def main() -> None:
    options = table_parser(__doc__)
    options.add_argument("model", nargs="?")
    options.add_argument("--weights", default="DEFAULT")
    options.add_argument("--data")
    options.add_argument("--mean", type=float, nargs="+")
    options.add_argument("--std", type=float, nargs="+")
    options.add_argument("--macs", type=float, nargs="+", default=[0.7, 0.5])
    options.add_argument("--epochs", type=int, default=4)
    options.add_argument("--augment", default="standard")
    options.add_argument("--folds", type=int, default=1)
    args = options.parse_args()
    torch.set_num_threads(1)
    table = Table(args.results / "few_images.csv", KEYS, COLUMNS)
    if not args.show:
        loaded = cc.load_model(args.model, args.weights, mean=args.mean, std=args.std)
        name, every = Path(args.model).name.rsplit(":", 1)[-1], cc.load_data(args.data, loaded.preprocessing, None).val
        for number in range(args.folds):
            fold = Fold(loaded.model, every, number, args.augment)
            for macs in args.macs:
                key = {"network": name, "macs": macs, "augment": args.augment, "epochs": args.epochs, "fold": number}
                if not table.find(**key):
                    add(table, fold, key, fold.compressed(macs), args.epochs)
    show(table)


if __name__ == "__main__":
    main()
