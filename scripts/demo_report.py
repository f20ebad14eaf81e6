"""Say what the demo has shown: a table on the test images, which neither trained nor chose anything, and plain words.

    python scripts/demo_report.py DECOMPOSED FINETUNED DATA

The two runs are the network before and after fine-tuning; DATA is as `--data`. All is measured now, on this machine:
the original and the compressed network are timed in turns.
"""

from __future__ import annotations

import dataclasses
import sys

import cnncompress as cc
from cnncompress.config import ModelSettings
from cnncompress.pipeline import run_evaluate
from cnncompress.reporting import Report, Row


def compare(decomposed: str, finetuned: str, data: str) -> Report:
    """The rows of the original, the decomposed and the fine-tuned network on the images of `data`, with latency."""
    report = cc.report(finetuned, data=data, latency=True)
    _, before = run_evaluate(ModelSettings(model=decomposed, data=data))
    measured = {"top1": before.top1, "top5": before.top5, "images": before.images}
    report.rows[1] = dataclasses.replace(report.rows[1], **measured)
    return report


def words(original: Row, decomposed: Row, tuned: Row) -> list[str]:
    """What the rows of the three networks say, a sentence each."""
    now, then = tuned.latency, original.latency
    if now is None or then is None:
        raise SystemExit("the networks were not timed")
    times = f"{now.median:.2f} instead of {then.median:.2f} ms an image, {now.median / then.median:.2f} of the time"
    where = f"batch {now.batch}, {now.threads} thread{'s' * (now.threads != 1)}, {now.device}"
    return [
        f"Smaller: {tuned.params / original.params:.2f} of the parameters and {tuned.macs / original.macs:.2f} of the "
        f"MACs, {tuned.size_bytes / 1e6:.2f} instead of {original.size_bytes / 1e6:.2f} MB.",
        f"{'Faster' if now.median < then.median else 'NOT faster on this machine'}: {times} ({where}).",
        f"Accuracy on {original.images:,} test images, which chose nothing: {original.top1:.1f} % originally, "
        f"{decomposed.top1:.1f} % after decomposing, {tuned.top1:.1f} % after fine-tuning.",
    ]


if __name__ == "__main__":
    report = compare(*sys.argv[1:])
    print(cc.render(report), "", *words(report.rows[0], report.rows[1], report.rows[-1]), sep="\n")
