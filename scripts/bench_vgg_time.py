"""Time and memory to decompose all of VGG-16 under data covariance, by phase, on random images.

    python scripts/bench_vgg_time.py [--images 64] [--threads 2]

The ranks are those of `configs/tai2016_vgg16.yaml` for the convolutions and K = 950, 650, 850 for the fully connected
layers. Weights and images are random: the work is the same.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import yaml

import cnncompress as cc
from cnncompress.terminal.console import Steps

CONFIG = Path(__file__).parent.parent / "configs" / "tai2016_vgg16.yaml"
CLASSIFIER = {"classifier.0": 950, "classifier.3": 650, "classifier.6": 850}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=64)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--metric", default="data-covariance")
    options.add_argument("--refine", type=int, default=1)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    phases = Steps()
    with phases("build"):
        model = cc.load_model("vgg16", "none").model
        images = torch.randn(args.images, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        batches = [(part, torch.zeros(len(part), dtype=torch.long)) for part in images.split(8)]
    with phases("plan"):
        ranks = {name: rule["rank"] for name, rule in yaml.safe_load(CONFIG.read_text())["per_layer"].items()}
        per_layer = {name: cc.Choice("auto", rank) for name, rank in {**ranks, **CLASSIFIER}.items()}
        chosen = cc.plan(model, images[:1], metric=args.metric, per_layer=per_layer)
    with phases("statistics"):
        statistics = cc.collect_statistics(model, batches, args.metric, layers=chosen.layers)
    print(phases)
    with phases("decompose"):
        small = cc.decompose(model, chosen, statistics=statistics, refine=args.refine)
    with phases("save"), tempfile.TemporaryDirectory() as folder:
        cc.save(small, Path(folder) / "run")
    print(f"{len(chosen.layers)} layers, {args.images} images, {args.metric}, {torch.get_num_threads()} threads")
    print(phases)
    print(f"together {sum(phases.seconds.values()):.1f} s")


if __name__ == "__main__":
    main()
