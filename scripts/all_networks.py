"""Decompose every network that torchvision knows, or say in one line why not: a table, and exit 1 on anything else.

Networks are built without values where they run so (shapes alone are planned and swapped), small ones with random
values otherwise. `python scripts/all_networks.py [PATTERN]` takes the names that match.
"""

from __future__ import annotations

import fnmatch
import inspect
import sys
import warnings
from collections import Counter
from contextlib import nullcontext

import torch
import torchvision
from accelerate import init_empty_weights
from torch import nn

import cnncompress as cc
from cnncompress.network.run import run

REAL = 80_000_000  # parameters of a network that is given values


def build(name: str, device: str) -> nn.Module:
    """A network in eval mode, without weights of its own or of its backbone."""
    builder = torchvision.models.get_model_builder(name)
    options = {"weights": None} | ({"weights_backbone": None} if "weights_backbone" in _parameters(builder) else {})
    with init_empty_weights(include_buffers=False) if device == "meta" else nullcontext():
        return builder(**options).eval().to(device)


def _parameters(builder: object) -> set[str]:
    return set(inspect.signature(builder).parameters)  # type: ignore[arg-type]


def attempt(name: str, device: str) -> str:
    """What became of a network on a device."""
    torch.manual_seed(0)
    model = build(name, device)
    side = 299 if "inception" in name else 224 if device == "meta" or name.startswith(("vit", "swin", "maxvit")) else 96
    image = torch.rand(1, 3, side, side, device=device)
    plan = cc.plan(model, image, rank=0.25 if device == "meta" else 1)
    if not plan.layers:
        reasons = Counter(plan.kept.values())
        return f"nothing replaced: {reasons.most_common(1)[0][0]}"
    small = cc.decompose(model, plan, progress=False)
    with torch.no_grad():
        run(small, image)
    others = sum(1 for reason in plan.kept.values() if "% of the MACs" in reason)
    share = cc.profile(small, image).total_macs / cc.profile(model, image).total_macs
    return f"{len(plan.layers)} layers replaced, {len(plan.kept) - others} kept, MACs {share:.2f}, on {device}"


def outcome(name: str) -> tuple[bool, str]:
    """Whether a network was decomposed or refused in one line, and the words."""
    told = ""
    for device in ("meta", "cpu"):
        try:
            if device == "cpu" and sum(p.numel() for p in build(name, "meta").parameters()) > REAL:
                break
            return True, attempt(name, device)
        except cc.CompressError as error:
            told = f"refused: {error}"
        except Exception as error:  # what a user would see as a traceback
            return False, f"{type(error).__name__}: {error}".splitlines()[0]
    return "\n" not in told, told


def main() -> None:
    """Print a line for each network."""
    warnings.simplefilter("ignore")
    pattern = sys.argv[1] if len(sys.argv) > 1 else "*"
    failed = 0
    for name in fnmatch.filter(torchvision.models.list_models(), pattern):
        good, words = outcome(name)
        failed += not good
        print(f"{'ok  ' if good else 'FAIL'} {name:32} {words}", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
