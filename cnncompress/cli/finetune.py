"""`cnncompress finetune`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cnncompress.cli import frame, options


@frame.command(
    "finetune",
    "finetune runs/resnet50 --data imagenet/ --epochs 2",
    "finetune runs/resnet50 --data imagenet/ --epochs 2 --resume",
    "finetune runs/resnet50 --data imagenet/ --epochs 2 --distill logits+attention",
    "finetune runs/resnet50 --data imagenet/ --schedule cascade:group=3 --until-drop 0.5",
    "finetune runs/resnet50 --data photos/ --distill logits --unlabelled",
)
@click.argument("run", type=options.PATH)
@options.data_option
@click.option(
    "--schedule",
    metavar="all|upper|cascade[:group=N]",
    help="Layers to train: all, those above the topmost decomposed one, or a cascade from the original on: decompose a "
    "layer (or N), freeze it and all below, train those above, go on with the next [default: all].",
)
@click.option(
    "--until-drop",
    type=float,
    metavar="X",
    help="End the training, or a step of a cascade, once top-1 is at most X points below the original's.",
)
@click.option(
    "--calibration-images",
    type=int,
    metavar="N",
    help="With a cascade: training images that statistics are collected from, anew in each step [default: 1000].",
)
@click.option(
    "--cache-gib",
    type=float,
    metavar="X",
    help="With --augment none and frozen layers: keep what these give for the training images, in up to X GiB "
    "[default: 2].",
)
@click.option(
    "--epochs", type=int, metavar="N", help="Passes over the training images, of a cascade in each step [default: 1]."
)
@click.option(
    "--images-per-epoch",
    type=int,
    metavar="N",
    help="Train on so many images an epoch, others in each [default: all training images].",
)
@click.option(
    "--lr",
    type=float,
    metavar="X",
    help="Highest learning rate, between warm-up and cosine [default: found by trials].",
)
@click.option(
    "--optimizer", type=click.Choice(["sgd", "adamw"]), help="SGD has a momentum of 0.9, see --config [default: sgd]."
)
@click.option("--weight-decay", type=float, metavar="X", help="[default: 0.0001 for sgd, 0.01 for adamw]")
@click.option(
    "--distill",
    type=click.Choice(["none", "logits", "attention", "logits+attention"]),
    help="Learn from the original too: its answers to the same images, where it looks, or both [default: none].",
)
@click.option(
    "--temperature",
    type=float,
    metavar="T",
    help="With --distill logits: temperature of both networks' answers [default: 4].",
)
@click.option(
    "--teacher-share",
    type=float,
    metavar="A",
    help="With --distill logits: weight of the original's answers; the labels have the rest [default: 0.9].",
)
@click.option(
    "--attention-weight",
    type=float,
    metavar="B",
    help="With --distill attention: weight of the difference of attention maps in the loss [default: 1000].",
)
@click.option(
    "--unlabelled",
    is_flag=True,
    default=None,
    help="With --distill logits: learn from images alone, whose folder needs no classes; labels are not read.",
)
@click.option(
    "--augment",
    type=click.Choice(["standard", "trivial", "none"]),
    help="Training images are shifted or cropped and flipped, with TrivialAugment too, or left [default: standard].",
)
@click.option("--mixup", type=float, metavar="A", help="Mix pairs of images, in shares of Beta(A, A) [default: 0].")
@click.option(
    "--label-smoothing", type=float, metavar="X", help="Share of a label that goes to all classes alike [default: 0]."
)
@click.option("--ema", type=float, metavar="D", help="Keep the moving average of the weights, of decay D [default: 0].")
@click.option(
    "--freeze-bn/--live-bn",
    default=None,
    help="Keep the statistics of batch normalisation, or not [default: keep, unless the network knows nothing].",
)
@click.option("--lr-rest", type=float, metavar="X", help="Rate outside of chains, as a share of --lr [default: 1].")
@click.option("--accumulate", type=int, metavar="N", help="Compute a batch in N parts, in less memory [default: 1].")
@click.option(
    "--clip-norm", type=float, metavar="X", help="Longest gradient of a step, as a Euclidean norm [default: any]."
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    help="Arithmetic of training; auto is bf16 on a GPU that has it, else fp32 [default: auto].",
)
@click.option(
    "--compile/--no-compile",
    default=None,
    help="Put the steps through torch.compile: minutes at first, then faster steps where it pays [default: no].",
)
@click.option(
    "--checkpoint-minutes",
    type=float,
    metavar="N",
    help="Longest time between two checkpoints, of which the last two are kept [default: 10].",
)
@click.option("--resume", is_flag=True, default=None, help="Go on from the run's last checkpoint.")
@options.input_options
@options.seed_option
@options.trust_option
@click.option(
    "--config", type=options.PATH, metavar="FILE", help="YAML file whose section `finetune:` has options; flags win."
)
@click.option(
    "--out", type=options.PATH, metavar="DIR", help="Write the tuned network to another run [default: RUN itself]."
)
@click.option(
    "--force", is_flag=True, default=None, help="Replace an existing run at --out; other files in its folder stay."
)
@options.loader_options
@options.device_option
def command(run: Path, config: Path | None, **flags: Any) -> None:
    """Train the network of RUN; keep the best weights.

    The best weights are those with the highest top-1 on the evaluation images. Without `val/`, these are the images
    that the run was evaluated on, or a fifth of all images. With --unlabelled, the best weights are those whose answers
    to these images diverge least from the original's.
    Ctrl-C, SIGTERM and SIGHUP stop with a checkpoint and exit code 1; the same command goes on with --resume. Only one
    process at a time trains or writes a run.

    Several processes: torchrun --nproc-per-node 2 -m cnncompress finetune RUN ...
    """
    from cnncompress.config import TuneSettings, merge

    settings = merge(TuneSettings, config, {**flags, "model": str(run)}, section="finetune")
    frame.need_data(settings.data, "train")
    frame.begin_run(run, settings.data)
    from cnncompress.api import run_finetune
    from cnncompress.reporting import render
    from cnncompress.reporting.layout import terminal_width

    done = run_finetune(settings, ["cnncompress", *sys.argv[1:]])
    if done is not None:
        options.echo(render(done.report, "table", width=terminal_width()))
        options.echo(f"\n{done.summary}\nsaved in {done.out}")
        frame.tell_written(done.out, shown=False)
