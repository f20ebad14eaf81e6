"""What a report comes to, in a sentence for each network."""

from __future__ import annotations

from itertools import zip_longest

from cnncompress.reporting.accuracy import is_noise, signed
from cnncompress.reporting.networks import ratios_of, references, share_of_time
from cnncompress.reporting.rows import Report, Row

WORDS = {"Half": 0.5, "A third of": 1 / 3, "Two thirds of": 2 / 3, "A quarter of": 0.25, "Three quarters of": 0.75}
CLOSE = 0.005  # by which a share may differ from the one in words
SAME = 0.995  # share of the MACs from which on nothing is saved
DIGITS = 1  # of a percentage, unless its standard error is smaller


def summaries(report: Report) -> list[str]:
    """A sentence for each network that was compressed, its newest version; with names where there are several."""
    rows = report.rows
    pairs = [
        (row, original)
        for row, original, after in zip_longest(rows, references(rows), rows[1:])
        if original is not None and row.kind != "original" and not _goes_on(row, after)
    ]
    several = len(pairs) > 1
    return [
        f"{row.name}: {_lower(summary(row, original))}" if several else summary(row, original)
        for row, original in pairs
    ]


def _goes_on(row: Row, after: Row | None) -> bool:
    """True where the next row is the same network after training."""
    return after is not None and after.kind == "finetuned" and after.name == f"{row.name}, fine-tuned"


def summary(row: Row, original: Row) -> str:
    """`Half the MACs, 0.71 of the time in onnxruntime, top-1 87.7 → 87.4 (−0.3 ± 0.4, within noise)`."""
    ratios = ratios_of(row, original)
    macs, params = ratios["macs"] or 1.0, ratios["params"] or 1.0
    parts = [share_words(params, "parameters") if macs >= SAME > params else share_words(macs, "MACs")]
    for latency in row.latencies:
        if (share := share_of_time(latency, original)) is not None:
            parts.append(f"{share:.2f} of the time in {latency.setting.label}")
    return ", ".join([*parts, accuracy_words(row, original)])


def share_words(share: float, of: str) -> str:
    """`Half the MACs`, `0.42 of the MACs`, `All MACs`."""
    if share >= SAME:
        return f"All the {of}" if share < 2 - SAME else f"{share:.2f} times the {of}"
    word = next(
        (word for word, exact in WORDS.items() if abs(share - exact) <= CLOSE),
        f"{share:.2f} of" if share >= 0.1 else f"{share:.2g} of",
    )
    return f"{word} the {of}"


def accuracy_words(row: Row, original: Row) -> str:
    """The accuracies and their difference, with its standard error and whether that is more than noise."""
    if row.top1 is None:
        return "accuracy not measured"
    if original.top1 is None:
        return f"top-1 {row.top1:.1f} (the original's is not known)"
    if (row.images, row.data) != (original.images, original.data):
        return f"top-1 {row.top1:.1f} (the original's {original.top1:.1f} is on other images)"
    error, change = row.top1_error, row.top1 - original.top1
    digits = DIGITS if error is None or error >= 0.05 else 2
    judged = ", standard error not known" if error is None else f" ± {error:.{digits}f}"
    judged += ", within noise" * is_noise(change, error)
    return f"top-1 {original.top1:.{digits}f} → {row.top1:.{digits}f} ({signed(change, digits)}{judged})"


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]
