"""A cascade whose process is killed at any moment, twenty times, comes to the weights of one that nobody killed."""

import dataclasses
import multiprocessing
import os
import random
import signal
import time
from contextlib import suppress

import pytest
import torch

from tests.finetuning.cascades import original, small_of, tune
from tests.finetuning.toy import Toy, assert_same, history_of, state_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")]

SEED = 4
KILLS = 20
MOST = 12  # images that are read before a kill, of 3 · 48
LONGEST = 0.02  # seconds between such an image and the kill: a step takes less, a slow machine's process waits
CASCADE = {"epochs": 1, "batch_size": 4, "calibration_images": 4, "checkpoint_minutes": 0}


def cascade_in(folder, told=None, images=0):
    """Go on with the cascade of a folder, or begin it; it tells of so many images that it reads, and stops there."""
    train, small = Toy(), small_of(original())
    left = iter(range(images))

    def on_item(epoch, index):
        if next(left, None) is None:
            signal.pause()
        told.send_bytes(b".")

    if told is not None:
        train.on_item = on_item
    begun = any((folder / "checkpoints" / name).exists() for name in ("last.pt", "previous.pt"))
    return small, tune(folder, small, train=train, resume=begun, **CASCADE)


def killed(context, folder, images, seconds):
    """Kill a process some time after it has read so many images; whether it was still at work."""
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=cascade_in, args=(folder, writer, images))
    process.start()
    writer.close()
    with suppress(EOFError):
        for _ in range(images):
            reader.recv_bytes()
    time.sleep(seconds)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def test_twenty_kills(tmp_path):
    expected, straight = cascade_in(tmp_path / "straight")
    context, rng, folder = multiprocessing.get_context("forkserver"), random.Random(SEED), tmp_path / "killed"
    context.set_forkserver_preload(["tests.finetuning.cascades"])  # importing takes seconds
    seen = set()
    for _ in range(KILLS):
        assert killed(context, folder, rng.randint(0, MOST), rng.uniform(0, LONGEST))
        if (last := folder / "checkpoints" / "last.pt").exists():
            state = torch.load(last, weights_only=True)
            seen.add((state["cascade"]["step"], state["epoch"], state["step"]))
    assert len(seen) > KILLS / 4
    assert len({step for step, *_ in seen}) > 1
    small, result = cascade_in(folder)
    assert_same(state_of(small), state_of(expected))
    assert history_of(result) == history_of(straight)
    assert dataclasses.replace(result, history=[]) == dataclasses.replace(straight, history=[])
