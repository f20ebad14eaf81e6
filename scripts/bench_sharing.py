"""Two runs on one machine: what they take side by side, as a share of what one takes alone.

    python scripts/bench_sharing.py [--work forward train plan compress] [--rounds 5]
        [--also OMP_WAIT_POLICY=PASSIVE ...]

A fair half of the machine is a ratio of 2. Every kind of work runs as cnncompress sets up its threads, as torch does
where it is imported first, and with each of the environments in `--also`; the settings take turns, so that a slow
moment hits all of them. Each number is the median over the rounds. Random weights and images, which serve for time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

Setting = tuple[str, dict[str, str]]  # the package that is imported first, and what the environment has besides


def forward() -> Callable[[], object]:
    """Single images through a narrow network: many short parallel regions."""
    import torch
    from torchvision.models import mobilenet_v2

    model, image = mobilenet_v2().eval(), torch.randn(1, 3, 96, 96)

    def work() -> None:
        with torch.inference_mode():
            for _ in range(150):
                model(image)

    return work


def train() -> Callable[[], object]:
    """Training steps: few long parallel regions."""
    import torch
    from torchvision.models import resnet18

    model, images, labels = resnet18(num_classes=10), torch.randn(16, 3, 64, 64), torch.arange(16) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def work() -> None:
        for _ in range(12):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

    return work


def plan() -> Callable[[], object]:
    """A plan for a budget: decompositions of all layers, and the choice among them."""
    import torch
    from torchvision.models import resnet18

    import cnncompress as cc

    model, image = resnet18().eval(), torch.randn(1, 3, 64, 64)
    return lambda: cc.plan(model, image, layers=["layer2.*"], budget=cc.Budget(macs=0.9))


def compress() -> Callable[[], object]:
    """A whole job but for timings, which want the machine alone: statistics, candidates, a plan, its correction."""
    import torch

    import cnncompress as cc

    loaded = cc.load_model("digits_vgg")
    images = torch.cat([x for x, _ in cc.make_loader(cc.load_data("digits", loaded.preprocessing, 10).train, 64)])[:500]
    return lambda: cc.compress(loaded.model, images, cc.Budget(macs=0.5), allow_slower=True)


WORK = {"forward": forward, "train": train, "plan": plan, "compress": compress}


def child(work: str, first: str) -> None:
    """Get ready, wait for a line, work, print the seconds."""
    __import__(first)
    job = WORK[work]()
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    job()
    print(time.perf_counter() - start, flush=True)


def seconds(work: str, setting: Setting, processes: int) -> float:
    """The mean time of `processes` that do the same work at once."""
    first, environment = setting
    command = [sys.executable, __file__, "--child", work, first]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": inherited | environment}
    running = [subprocess.Popen(command, **pipes) for _ in range(processes)]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    return statistics.mean(float(process.communicate()[0]) for process in running)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--also", nargs="+", default=[], metavar="VARIABLE=VALUE")
    options.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.child:
        child(*args.child)
        return
    settings: dict[str, Setting] = {"cnncompress": ("cnncompress", {}), "torch alone": ("torch", {})}
    settings |= {text: ("torch", dict([text.split("=", 1)])) for text in args.also}
    print(f"{'work':8} {'threads as set by':28} {'alone':>8} {'two':>8} {'two / alone':>12}")
    for work in args.work:
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in settings}
        for _ in range(args.rounds):
            for name, setting in settings.items():
                taken[name].append((seconds(work, setting, 1), seconds(work, setting, 2)))
                print(f"{work}, {name}: {taken[name][-1][0]:.2f} s, {taken[name][-1][1]:.2f} s", file=sys.stderr)
        for name, pairs in taken.items():
            alone, two = (statistics.median(times) for times in zip(*pairs, strict=True))
            print(f"{work:8} {name:28} {alone:7.2f}s {two:7.2f}s {two / alone:12.2f}", flush=True)


if __name__ == "__main__":
    main()
