"""What must be known before the numbers of a report, in plain words."""

from __future__ import annotations

from cnncompress.reporting.networks import references, share_of_time
from cnncompress.reporting.rows import Report, Row

FEW = 1000  # images: on fewer, the standard error of an accuracy near 90 % is more than a point
TELLING = (
    "a little optimistic",
    "regularised strongly",
    "was not measured",
    "not comparable",
    "without regard to time",
    "if the accuracy is too low",
    "fitted to the weights alone",
    "other work",
    "assumed of",
)  # words of notes that say what the numbers are not


def warnings_of(report: Report) -> list[str]:
    """What is missing, slower, worse beyond noise, or not to be compared; then the notes that say such things."""
    rows = report.rows
    found: list[str] = []
    for row, original in zip(rows, references(rows), strict=True):
        if original is not None and row is not original:
            found += _of_row(row, original)
    evaluated = [row for row in rows if row.top1 is not None]
    if not evaluated:
        found.append("No accuracy was measured: nothing here says what the compression cost. Give --data.")
    counts = {row.images for row in evaluated if row.images}
    if counts and min(counts) < FEW:
        found.append(f"Accuracies are of {min(counts):,} images only: small differences are not told from none.")
    if len(counts) > 1 or len({row.data for row in evaluated if row.data}) > 1:
        found.append("The networks were evaluated on different images: their accuracies are not comparable.")
    return found + [note for note in report.notes if any(words in note for words in TELLING)]


def _of_row(row: Row, original: Row) -> list[str]:
    found = []
    for latency in row.latencies:
        ratio = share_of_time(latency, original)
        if ratio is not None and ratio >= 1:
            found.append(f"{row.name} is not faster in {latency.setting.label}: it takes {ratio:.2f} of the time.")
    if row.top1 is not None and original.top1 is not None and row.top1_error is None:
        found.append(
            f"How certain the change of top-1 of {row.name} is, is not known: `report --data` measures it with its "
            "standard error."
        )
    return found
