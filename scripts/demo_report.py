"""Say what the demo has shown: a table on the test images, which neither trained nor chose anything, and plain words.

    python scripts/demo_report.py ORIGINAL DECOMPOSED FINETUNED DATA

ORIGINAL is the name of a network, the two runs are what became of it before and after fine-tuning; DATA is as `--data`.
All is measured now, on this machine: the original and the compressed network are timed in turns.
"""

from __future__ import annotations

import dataclasses
import sys

import cnncompress as cc
from cnncompress.network.evaluate import paired_error
from cnncompress.network.memory_format import to_memory_format
from cnncompress.reporting import Report, Row
from cnncompress.reporting.accuracy import NOISE, change_words, is_noise

BATCH = 32  # images of 40×40
SAME_TIME = 0.05  # a share by which medians of the same network differ from one run to the next


def compare(original: str, decomposed: str, finetuned: str, data: str) -> tuple[Report, float]:
    """The rows of the three networks on the images of `data`, with latency.

    The number is the standard error of what fine-tuning changed, in points of top-1.
    """
    loaded = cc.load_model(original)
    images = cc.load_data(data, loaded.preprocessing, None)
    batches = list(cc.make_loader(images.val, BATCH, workers=2))  # drawn once for all three networks
    same = to_memory_format(loaded.model, "channels_last")  # as the other two are in
    networks = [same, cc.load(decomposed), cc.load(finetuned)]
    results = [cc.evaluate(network, batches) for network in networks]
    report = cc.report(finetuned, latency=True)
    rows = [report.rows[0], report.rows[1], report.rows[-1]]  # where fine-tuning gained nothing, the last two are one
    for i, (row, result) in enumerate(zip(rows, results, strict=True)):
        measured = {"top1": result.top1, "top5": result.top5, "images": result.images, "data": images.fingerprint}
        rows[i] = dataclasses.replace(row, **measured, top1_error=paired_error(results[0], result) if i else None)
    report.rows = rows
    return report, paired_error(results[1], results[2]) or 0.0


def words(original: Row, decomposed: Row, tuned: Row, error: float) -> list[str]:
    """What the rows of the three networks say, a sentence each; `error` is that of what fine-tuning changed."""
    now, then = tuned.latency, original.latency
    if now is None or then is None:
        raise SystemExit("the networks were not timed")
    ratio = now.median / then.median
    speed = "Faster" if ratio < 1 - SAME_TIME else "NOT faster on this machine"
    times = f"{now.median:.2f} instead of {then.median:.2f} ms an image, {ratio:.2f} of the time"
    how = now.setting
    where = f"batch {how.batch}, {how.threads} thread{'s' * (how.threads != 1)}, {how.device}"
    return [
        f"Smaller: {tuned.params / original.params:.2f} of the parameters and {tuned.macs / original.macs:.2f} of the "
        f"MACs, {tuned.size_bytes / 1e6:.2f} instead of {original.size_bytes / 1e6:.2f} MB.",
        f"{speed}: {times} ({where}).",
        f"Accuracy on {original.images:,} test images, which chose nothing: {original.top1:.1f} % originally, "
        f"{decomposed.top1:.1f} % after decomposing, {tuned.top1:.1f} % after fine-tuning.",
        f"In points: decomposing {change(original, decomposed, decomposed.top1_error)}, fine-tuning "
        f"{change(decomposed, tuned, error)}, together {change(original, tuned, tuned.top1_error)} "
        f"(± standard error; noise is less than {NOISE:g} of them).",
    ]


def change(before: Row, after: Row, error: float | None) -> str:
    """A difference of top-1 with its standard error, and whether it is noise."""
    if before.top1 is None or after.top1 is None or error is None:
        raise SystemExit("a network was not evaluated: run the demo again")
    points = after.top1 - before.top1
    return f"{change_words(points, error)}{' (within noise)' * is_noise(points, error)}"


if __name__ == "__main__":
    report, error = compare(*sys.argv[1:])
    print(cc.render(report), "", *words(report.rows[0], report.rows[1], report.rows[-1], error), sep="\n")
