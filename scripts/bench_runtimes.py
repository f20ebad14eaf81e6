"""Accuracy against time where networks run: originals and plans for that runtime, in every precision it has.

    python scripts/bench_runtimes.py MODEL --weights FILE --data FOLDER [--input-size 32] [--budgets 0.7 0.5]
    python scripts/bench_runtimes.py --show

For each runtime, or `RUNTIME:PRECISION`, `cnncompress decompose` makes a network for each budget of latency in it (kept
under `--cache`, made once), without labels or training. All of them and the original are then exported, quantised with
the calibration images, evaluated on images that nothing was fitted to, and timed in turns in one process. Rows go to
`results/runtimes.csv`, one picture a batch size to `results/runtimes_batch1.png`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchlib import RESULTS, Bench, Table, markdown, open_bench, parser, read_csv
from torch import Tensor, nn

import cnncompress as cc
from cnncompress.latency.clock import Prepared, in_turns, percentiles
from cnncompress.latency.machine import complete
from cnncompress.latency.network import ROUNDS
from cnncompress.latency.runtimes import get_runtime
from cnncompress.latency.runtimes.onnx_program import OnnxProgramRuntime
from cnncompress.latency.setting import TimingSetting, parse_runtime
from cnncompress.network.copying import clone
from cnncompress.network.memory_format import MEMORY_FORMATS, to_memory_format
from cnncompress.programs.int8 import quantise

RUNTIMES = ("torch", "onnxruntime", "openvino")
KEYS = ("network", "runtime", "precision", "budget", "batch")
COLUMNS = (*KEYS, "threads", "images", "top1", "difference", "error", "macs", "ms", "p10", "p90", "share", "seconds")
FILE = "runtimes.csv"
ORIGINAL = "original"
COLOURS = {"fp32": "tab:blue", "bf16": "tab:orange", "int8": "tab:green"}
TOGETHER = 250  # images: a program is loaded anew for each batch


def make(args: argparse.Namespace, name: str, runtime: str, budget: str) -> tuple[Path, float] | None:
    """The run for a budget of latency in a runtime, and the seconds its making took; None where none is so fast."""
    folder = args.cache / f"{name}-{runtime}-{budget}{args.method.replace('auto', '')}"
    seconds = folder.with_name(f"{folder.name}.seconds")
    if not seconds.exists():
        words = ["decompose", args.model, "--weights", args.weights, "--data", args.data, "--out", str(folder)]
        words += ["--force", "--budget", f"latency={budget}", "--runtime", runtime, "--threads", str(args.threads)]
        words += ["--calibration-images", str(args.calibration_images), "--method", args.method]
        for option in ("input_size", "mean", "std"):
            if (value := getattr(args, option)) is not None:
                words += [f"--{option.replace('_', '-')}", str(value).strip("[]").replace(" ", "")]
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "cnncompress", *words], stderr=subprocess.PIPE, text=True)
        print(done.stderr.strip().split("\n")[-1], flush=True)
        if done.returncode:
            return None
        seconds.write_text(f"{time.perf_counter() - start:.1f}")
    return folder, float(seconds.read_text())


def programs_of(bench: Bench, networks: Mapping[str, nn.Module]) -> dict[tuple[str, str], bytes]:
    """Every network as an ONNX program in single precision and in 8-bit integers."""
    found = {}
    for budget, network in networks.items():
        both = quantise(network, bench.held_out[0][0][:2], (x for x, _ in bench.calibration))
        found[budget, "fp32"], found[budget, "int8"] = both.single, both.int8
    return found


def right(answers: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Whether each image is right, [images] in float64."""
    return {key: (found.argmax(1) == labels).double() for key, found in answers.items()}


def program_answers(runtime: OnnxProgramRuntime, program: bytes, setting: TimingSetting, bench: Bench) -> Tensor:
    """The outputs on all held-out images, [images, classes]."""
    outputs = []
    for images in torch.cat([x for x, _ in bench.held_out]).contiguous().split(TOGETHER):
        found: Any = runtime.load(program, images, setting)()
        outputs.append(torch.from_numpy(np.array(found[0])))
    return torch.cat(outputs)


def of_programs(bench: Bench, runtime: str, networks: Mapping[str, nn.Module], args: argparse.Namespace):
    """Answers and calls of all programs in a runtime, by budget and precision."""
    name, _ = parse_runtime(runtime)
    way = get_runtime(name)
    assert isinstance(way, OnnxProgramRuntime)
    found = programs_of(bench, networks)
    named = {(budget, precision): found[budget, precision] for budget, precision in found}
    if "bf16" in way.precisions and not way.lacks("bf16"):
        named |= {(budget, "bf16"): found[budget, "fp32"] for budget in networks}
    answers, settings = {}, {}
    for (budget, precision), program in named.items():
        settings[budget, precision] = complete(TimingSetting(threads=args.threads).within(f"{name}:{precision}"))
        answers[budget, precision] = program_answers(way, program, settings[budget, precision], bench)

    def calls(batch: Tensor) -> dict[tuple[str, str], Prepared]:
        return {key: Prepared(way.load(program, batch, settings[key])) for key, program in named.items()}

    return answers, calls


def of_eager(bench: Bench, networks: Mapping[str, nn.Module], args: argparse.Namespace):
    """The same in eager PyTorch, in the memory format that each is fastest in: keys are (budget, fp32, format)."""
    way, setting = get_runtime("torch"), complete(TimingSetting(threads=args.threads))
    answers = {(budget, "fp32"): bench.answers(network) for budget, network in networks.items()}

    def calls(batch: Tensor) -> dict[tuple[str, ...], Prepared]:
        return {
            (budget, "fp32", layout): Prepared(way.prepare(to_memory_format(clone(network), layout), batch, setting))
            for budget, network in networks.items()
            for layout in MEMORY_FORMATS
        }

    return answers, calls


def measure(bench: Bench, runtime: str, made: Mapping[str, tuple[Path, float]], args: argparse.Namespace, table: Table):
    """Rows of all networks of a runtime."""
    torch.set_num_threads(args.threads)
    networks = {ORIGINAL: bench.model, **{b: cc.load(path, trust_code=True) for b, (path, _) in made.items()}}
    full = cc.profile(bench.model, bench.example).macs
    macs = {b: cc.profile(network, bench.example).macs / full for b, network in networks.items()}
    of = of_eager(bench, networks, args) if runtime == "torch" else of_programs(bench, runtime, networks, args)
    answers, calls = of
    scores = right(answers, torch.cat([y for _, y in bench.held_out]))
    setting = complete(TimingSetting(threads=args.threads).within(runtime))
    way = get_runtime(setting.runtime)
    for batch in args.batches:
        images = torch.cat([x for x, _ in bench.held_out])[:batch].contiguous()
        with way.running(setting):
            ready = calls(images)
            samples = in_turns(list(ready.values()), partial(way.milliseconds, setting=setting), ROUNDS)
        times: dict[tuple[str, str], tuple[float, float, float]] = {}
        for key, one in zip(ready, samples, strict=True):
            found = percentiles(one.milliseconds)
            times[key[:2]] = min(times.get(key[:2], found), found)
        for (budget, precision), (ms, p10, p90) in times.items():
            moved = scores[budget, precision] - scores[ORIGINAL, "fp32"]
            table.add(
                network=bench.name, runtime=runtime, precision=precision, budget=budget, batch=batch,
                threads=args.threads, images=len(moved), top1=100 * float(scores[budget, precision].mean()),
                difference=100 * float(moved.mean()), error=100 * float(moved.std()) / len(moved) ** 0.5,
                macs=macs[budget], ms=ms, p10=p10, p90=p90, share=ms / times[ORIGINAL, "fp32"][0],
                seconds=made[budget][1] if budget in made else 0.0,
            )  # fmt: skip


def show(folder: Path) -> None:
    """The rows as a Markdown table."""
    heads = ["network", "runtime", "batch", "plan", "precision", "top-1", "difference", "MACs", "ms", "time"]
    lines = []
    for row in read_csv(folder / FILE):
        number = {c: float(row[c]) for c in COLUMNS[5:]}
        first = row["budget"] == ORIGINAL
        moved = "" if first and row["precision"] == "fp32" else "{difference:+.2f} ± {error:.2f}".format(**number)
        texts = [f"{number[c]:.2f}" for c in ("macs", "ms", "share")]
        plan = ORIGINAL if first else f"latency={row['budget']}"
        names = [row["network"], row["runtime"], row["batch"], plan, row["precision"]]
        lines.append([*names, f"{number['top1']:.2f}", moved, *texts])
    print(markdown(lines, heads))


def plot(folder: Path, batch: str) -> None:
    """One panel a network and runtime: top-1 against milliseconds, a line for each precision that a network runs in.

    Networks that were planned in another precision than single are triangles off the lines.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in read_csv(folder / FILE) if r["batch"] == batch]
    networks = list(dict.fromkeys(r["network"] for r in rows))
    runtimes = list(dict.fromkeys(parse_runtime(r["runtime"])[0] for r in rows))
    size = (4 * len(runtimes), 3 * len(networks))
    figure, axes = plt.subplots(len(networks), len(runtimes), figsize=size, squeeze=False, layout="constrained")
    for axis, (network, runtime) in zip(axes.flat, [(n, r) for n in networks for r in runtimes], strict=True):
        for precision, colour in COLOURS.items():
            of = [r for r in rows if (r["network"], r["precision"]) == (network, precision)]
            here = sorted((r for r in of if r["runtime"] == runtime), key=lambda r: float(r["ms"]))
            others = [r for r in of if r["runtime"].startswith(f"{runtime}:") and r["budget"] != ORIGINAL]
            for these, how in ((here, "o-"), (others, "^")):
                x, y, error = ([float(r[c]) for r in these] for c in ("ms", "top1", "error"))
                label = precision if these is here and here else None
                axis.errorbar(x, y, error, color=colour, fmt=how, ms=4, lw=1, label=label)
            first = [r for r in here if r["budget"] == ORIGINAL]
            axis.plot([float(r["ms"]) for r in first], [float(r["top1"]) for r in first], "s", color=colour, ms=7)
        axis.set(title=f"{network} in {runtime}", xlabel="ms", ylabel="top-1, %")
        axis.margins(0.1)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    figure.legend(*axes.flat[-1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(folder / f"runtimes_batch{batch}.png", dpi=90)


def report(folder: Path) -> None:
    """The table and the pictures of all rows."""
    show(folder)
    for batch in dict.fromkeys(r["batch"] for r in read_csv(folder / FILE)):
        plot(folder, batch)


def main() -> None:
    if "--show" in sys.argv:
        return report(RESULTS)
    options = parser(__doc__)
    options.set_defaults(cache=Path("build/runtimes"))
    options.add_argument("--runtimes", nargs="+", default=RUNTIMES)
    options.add_argument("--budgets", nargs="+", default=["0.7", "0.5"], help="shares of the original's time")
    options.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--method", default="auto")
    args = options.parse_args()
    bench = open_bench(args)
    table = Table(args.results / FILE, KEYS, COLUMNS)
    for runtime in args.runtimes:
        if table.find(network=bench.name, runtime=runtime, precision="fp32", budget=ORIGINAL, batch=args.batches[0]):
            continue
        made = {budget: make(args, bench.name, runtime, budget) for budget in args.budgets}
        measure(bench, runtime, {b: one for b, one in made.items() if one}, args, table)
    report(args.results)


if __name__ == "__main__":
    main()
